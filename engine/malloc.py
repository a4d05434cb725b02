"""Tells the C library to keep the memory of a CPU batch for the next one. Knows nothing of what used it."""

import ctypes
import sys

# glibc fetches blocks of over 32 MB from the system each time, in the worst case for 6 % of a batch; what it keeps
# does not grow from batch to batch, so nothing is given back in between (bench/LOG.md, 2026-11-24).
_KEPT_BYTES = 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_blocks() -> bool:
    """Let blocks of up to 256 MB that the main thread frees serve its next batch, in this whole process.

    Returns:  whether the C library will; one without `mallopt`, or that refuses (an old glibc), is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    # The second alone would stop glibc from raising its 128 kB for the first.
    return bool(set_option(_M_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(
        set_option(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)
    )
