"""Benchmarks of kernels, whole models and peers, and the random checkpoints that they run on."""
