"""Token ids to batches, and a batch to the kernels' buffer."""
