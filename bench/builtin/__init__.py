"""How the built-in model in `weights/builtin/` is made and judged; not in the wheel."""
