"""The Triton kernels, one file each, and the tables of their block sizes and resources."""
