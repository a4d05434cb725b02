"""How many random cases a test draws: few in `make test`, twenty times as many in `make soak`."""

import os


def examples(count: int) -> int:
    """`count` cases, or twenty times as many where LASTWORD_SOAK is set."""
    return 20 * count if os.environ.get("LASTWORD_SOAK") else count
