"""`lastword bench kernels`: each operation checked and timed."""
