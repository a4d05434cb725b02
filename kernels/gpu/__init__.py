"""The Triton kernels, one file per operation, and the tables of their block sizes and resources."""
