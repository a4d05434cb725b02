"""One file per Triton kernel, and the tables of their block sizes and resources."""
