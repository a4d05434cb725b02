"""`lastword bench kernels`: check and time each operation."""
