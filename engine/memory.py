"""Gives memory that is free but held by the C library back to the system. Knows nothing of what used it."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache

# Batches between two calls: every batch has sizes of its own, and glibc keeps about 10 MB of holes after each.
BATCHES = 8


def give_back() -> None:
    """Return free heap pages to the system; does nothing where the C library has no `malloc_trim`."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    if not sys.platform.startswith("linux"):
        return lambda _: None
    found: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
    return found
