"""Access a tensor of a safetensors file: memory-mapped as a whole, or read slice by slice.

Reading slice by slice is for merging and converting models, which may be far larger than memory. Slices are read into
reused buffers, which avoids the page faults of a mapping, and the operating system is asked to read ahead.
"""

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor

from lastword.errors import WeightsError
from lastword.weights.files.dtypes import torch_dtype
from lastword.weights.files.header import TensorInfo
from lastword.weights.files.reading import read_error

_READ_AHEAD = 4 << 20  # bytes per read-ahead request
_DISTANCE = 8 * _READ_AHEAD  # how many bytes after the current read a read-ahead request begins


def map_tensor(info: TensorInfo, name: str) -> Tensor:
    """Return one tensor as a view of the mapped file; the data is read only when it is used.

    The mapping lives exactly as long as the tensor. If the file is overwritten meanwhile, the tensor changes; if it is
    shortened, this process is killed. So never overwrite a file of weights: write a new file and rename it.

    Raises:
        WeightsError: the file cannot be mapped, or changed since its header was read.
    """
    # Map only this tensor's pages: a mapping of a whole file can exceed the system's limits.
    lead = info.start % mmap.ALLOCATIONGRANULARITY
    try:
        with info.open() as file:
            pages = mmap.mmap(
                file.fileno(),
                info.num_bytes + lead,
                access=mmap.ACCESS_COPY,
                offset=info.start - lead,
            )
    except OSError as problem:
        raise read_error(f"{info.file}: tensor {name}", problem) from None
    except ValueError as problem:  # the file has just become shorter
        raise WeightsError(f"{info.file}: tensor {name}", f"cannot be mapped ({problem})") from None
    flat = torch.frombuffer(pages, dtype=torch_dtype(info.dtype), offset=lead)
    return flat.view(info.shape)


class FlatTensor(Protocol):
    """A one-dimensional tensor that is read in slices, from memory or from its file."""

    def numel(self) -> int:
        """Return the number of elements."""

    def __getitem__(self, place: slice, /) -> Tensor:
        """Return the elements of a slice."""


class FileTensor:
    """A tensor in an open file, which any number of threads may read; created by `open_tensor`."""

    def __init__(self, info: TensorInfo, name: str, descriptor: int) -> None:
        self.dtype = torch_dtype(info.dtype)
        self._info, self._name, self._descriptor = info, name, descriptor
        self._buffer = _Buffer()
        self._request(info.start, min(_DISTANCE, info.num_bytes))

    def numel(self) -> int:
        """Return the number of elements."""
        return self._info.num_bytes // self.dtype.itemsize

    def __getitem__(self, place: slice) -> Tensor:
        """Read a non-empty slice; the result is valid until this thread reads the next slice.

        Raises:
            WeightsError: the file cannot be read, or has become shorter.
        """
        start = self._info.start + place.start * self.dtype.itemsize
        buffer = self._buffer.of((place.stop - place.start) * self.dtype.itemsize)
        self._read_ahead(start, start + len(buffer))
        try:
            done = 0
            while done < len(buffer):
                count = os.preadv(self._descriptor, [buffer[done:]], start + done)
                if not count:
                    raise WeightsError(
                        f"{self._info.file}: tensor {self._name}",
                        "cut off",
                        got=f"{done} bytes",
                        expected=f"{len(buffer)} from byte {start}",
                        remedy="The file changed while it was read: download it again.",
                    )
                done += count
        except OSError as problem:
            raise read_error(f"{self._info.file}: tensor {self._name}", problem) from None
        return torch.frombuffer(buffer, dtype=self.dtype)

    def _read_ahead(self, start: int, stop: int) -> None:
        """Request `_READ_AHEAD` more bytes after every `_READ_AHEAD` bytes read; they may belong to the next tensor."""
        reached = stop // _READ_AHEAD * _READ_AHEAD
        if reached > start:
            self._request(reached + _DISTANCE, _READ_AHEAD)

    def _request(self, start: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice only
                os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)


class _Buffer(threading.local):
    """One buffer of bytes per thread."""

    def __init__(self) -> None:
        self._held = bytearray()

    def of(self, size: int) -> memoryview:
        if len(self._held) < size:
            self._held = bytearray(size)
        return memoryview(self._held)[:size]


@contextmanager
def open_tensor(info: TensorInfo, name: str) -> Iterator[FileTensor]:
    """Open a tensor's file, to read the tensor in slices.

    Raises:
        WeightsError: the file cannot be opened, or changed since its header was read.
    """
    try:
        file = info.open()
    except OSError as problem:
        raise read_error(f"{info.file}: tensor {name}", problem) from None
    with file:
        yield FileTensor(info, name, file.fileno())
