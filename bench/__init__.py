"""What is measured and what is made for measuring: kernels, models, peers, and random checkpoints."""
