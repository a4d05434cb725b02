"""Pack token ids into batches, and a batch into the buffer that the kernels read."""
