"""What loading a CPU model changes in the caller's process: the C library's memory and oneDNN's caches.

While a model loads, freed blocks go back to the system; afterwards they are kept for the next batch. `tune_process`
of the Embedder leaves all of it out.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc fetches blocks of over 32 MB from the system each time, in the worst case for 6 % of a batch; what it keeps
# does not grow from batch to batch, so nothing is given back in between (bench/LOG.md, 2026-11-24).
_KEPT_BYTES = 256 << 20
# Kept, a layer's blocks would lie between those of the layers before: holes of half a model (LOG, 2026-11-27).
_LOADING_BYTES = 1 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>

# oneDNN and PyTorch's layer above it keep what they made for each number of rows, about 1 MB per matmul, 1024 times.
# Each reads its variable once, at its first matmul in this process: where torch has computed before, it is too late.
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_CACHED = "32"


@contextmanager
def loading() -> Iterator[None]:
    """Within it freed blocks of over 1 MB go back to the system at once; from its end on `keep_blocks`."""
    limit_caches()
    _set(_M_MMAP_THRESHOLD, _LOADING_BYTES)
    try:
        yield
    finally:
        keep_blocks()


def limit_caches() -> None:
    """Let oneDNN's two caches hold 32 entries where the user's environment does not say."""
    for name in _CACHES:
        os.environ.setdefault(name, _CACHED)


def keep_blocks() -> bool:
    """Let blocks of up to 256 MB that the main thread frees serve its next batch, in this whole process.

    Returns:
        Whether the C library will; one without `mallopt`, or that refuses (an old glibc), is left as it is.
    """
    # The second alone would stop glibc from raising its 128 kB for the first.
    return _set(_M_MMAP_THRESHOLD, _KEPT_BYTES) and _set(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)


def _set(option: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    return bool(getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(option, value))
