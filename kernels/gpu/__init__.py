"""The Triton kernels, one file per kind of operation, and the tables of their block sizes and resources."""
