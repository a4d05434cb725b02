"""`lastword bench model`: whole models timed."""
