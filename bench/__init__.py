"""Benchmarks of the kernels, whole models, the server and other libraries, and random checkpoints to run them on."""
