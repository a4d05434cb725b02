"""Create models from existing ones by merging or converting them, and plan bags of training data for merging."""
