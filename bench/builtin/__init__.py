"""Scripts that make and evaluate the built-in model in `weights/builtin/`; not in the wheel."""
