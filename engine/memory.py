"""Speaks to the C library about the memory of CPU batches: keep it between batches, give back what is left over.

Knows nothing of what used it.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache

# Batches between two calls of `give_back`: every batch has sizes of its own, and glibc keeps about 10 MB of holes
# after each.
BATCHES = 8
# glibc fetches blocks of over 32 MB from the system each time: fresh pages cost up to 6 % of a batch.
_KEPT_BYTES = 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_blocks() -> None:
    """Let freed blocks of up to 256 MB serve the next batch; does nothing where the C library has no `mallopt`."""
    set_option = _function("mallopt")
    set_option(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    set_option(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)


def give_back() -> None:
    """Return free heap pages to the system; does nothing where the C library has no `malloc_trim`."""
    _function("malloc_trim")(0)


@cache
def _function(name: str) -> Callable[..., object]:
    if not sys.platform.startswith("linux"):
        return lambda *_: None
    found: Callable[..., object] = getattr(ctypes.CDLL(None), name, lambda *_: None)
    return found
