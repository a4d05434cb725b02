"""What loading a model changes in the process: memory allocation, the caches of oneDNN, the threads after a fork.

While a CPU model loads, freed blocks of memory go back to the system; afterwards they are kept for the next batch. With
`tune_process=False`, memory allocation and the caches stay as they are.
"""

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lastword.errors import DeviceError, LastwordWarning

# Freed blocks up to this size are kept. By default, glibc requests blocks of over 32 MB from the system every time,
# which takes up to 6 % of a batch's time. Kept memory does not grow from batch to batch, so nothing is returned between
# batches (bench/LOG.md, 2026-11-24).
_KEPT_BYTES = 256 << 20
# While loading, larger freed blocks go back to the system. If they were kept, memory would be fragmented, with holes of
# half a model in total (bench/LOG.md, 2026-11-27). This is glibc's own default. With 1 MB, the holes between the small
# matrices of a small model were still half the size of the model (2026-11-30).
_LOADING_BYTES = 128 << 10
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>

# Environment variables that libraries read once; setting them later has no effect.
VARIABLES = {
    # oneDNN and PyTorch's layer above it cache up to 1,024 matmuls, one per number of rows, at about 1 MB each.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
    # Weights in pages of 2 MB are read up to 10 % faster (bench/LOG.md, 2026-11-29). Takes effect at the first tensor.
    "THP_MEM_ALLOC_ENABLE": "1",
}

# Id of the process that last loaded a model. That process started OpenMP's threads, which do not survive a fork.
_loaded_in: int | None = None


def prepare_threads(device: torch.device) -> None:
    """In a fork of a process that had loaded a model, set PyTorch to one thread; with more, OpenMP would hang.

    Raises:
        DeviceError: the device is a GPU, and this process is a fork of one that has used a GPU.
    """
    global _loaded_in  # noqa: PLW0603  the process has one
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise DeviceError(
            f"device {device}",
            "cannot be used after a fork",
            got="a fork of a process that has used a GPU",
            expected="a process of its own",
            remedy="Start processes with 'spawn' or 'forkserver'.",
        )
    if _loaded_in not in (None, os.getpid()) and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warnings.warn(
            LastwordWarning(
                "device cpu",
                "computes on one thread, because this process is a fork of one that had loaded a model",
                remedy="Start processes with 'spawn' or 'forkserver' to use more.",
            ),
            stacklevel=2,
        )
    _loaded_in = os.getpid()


@contextmanager
def tune_for_loading() -> Iterator[None]:
    """Set the variables; in the `with` block, return freed blocks of over 128 kB to the system; then `keep_blocks`."""
    set_variables()
    _set(_M_MMAP_THRESHOLD, _LOADING_BYTES)
    try:
        yield
    finally:
        keep_blocks()


def set_variables() -> None:
    """Set those of `VARIABLES` that the environment does not set: small caches of matmuls, large pages for weights."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


def keep_blocks() -> bool:
    """Keep freed blocks of up to 256 MB for the next batch, in the main heap of the process.

    Returns:
        Whether the C library accepted both settings. Without `mallopt`, as outside glibc, nothing changes.
    """
    # Setting the trim threshold alone would stop glibc from raising the mmap threshold above its default of 128 kB.
    return _set(_M_MMAP_THRESHOLD, _KEPT_BYTES) and _set(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)


def return_memory() -> None:
    """Give memory that is free but still held by the C library back to the system; called when a model is freed."""
    if sys.platform.startswith("linux"):
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)


def _set(option: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    return bool(getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(option, value))
