"""Schedule batches on devices: the loop, background threads, worker processes."""
