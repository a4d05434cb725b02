"""`lastword bench model`: time whole models."""
