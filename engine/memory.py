"""Speaks to the C library about the memory of CPU batches: keep it between batches, give back what is left over.

Knows nothing of what used it.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache

# Rows computed between two calls of `give_back`: every batch has sizes of its own, and glibc keeps about 10 MB of holes
# after one of 2048.
ROWS = 16_384
# glibc fetches blocks of over 32 MB from the system each time, in the worst case for 6 % of a batch (bench/LOG.md).
_KEPT_BYTES = 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_blocks() -> bool:
    """Let blocks of up to 256 MB that the main thread frees serve its next batch, in this whole process.

    Returns:  whether the C library will; one without `mallopt`, or that refuses (an old glibc), is left as it is.
    """
    set_option = _function("mallopt")
    # The second alone would stop glibc from raising its 128 kB for the first.
    return bool(set_option(_M_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(
        set_option(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)
    )


class Leftovers:
    """What one model's batches leave behind in the heap: given back after every 16,384 rows, over all calls."""

    def __init__(self) -> None:
        self._rows = 0

    def after_batch(self, rows: int) -> None:
        """Count the rows of a batch whose memory is free again."""
        self._rows += rows
        if self._rows >= ROWS:
            self._rows = 0
            give_back()


def give_back() -> None:
    """Return free heap pages to the system; does nothing where the C library has no `malloc_trim`."""
    _function("malloc_trim")(0)


@cache
def _function(name: str) -> Callable[..., int]:
    if not sys.platform.startswith("linux"):
        return lambda *_: 0
    found: Callable[..., int] = getattr(ctypes.CDLL(None), name, lambda *_: 0)
    return found
