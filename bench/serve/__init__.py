"""`lastword bench serve`: put load on `lastword serve` from a separate process, and check every answer."""
