"""Where and when batches are computed: the loop, devices, worker processes."""
