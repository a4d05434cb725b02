"""Create models from existing ones: merge recipes and methods, dtype conversion, bags of training data."""
