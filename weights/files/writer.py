"""Write safetensors files atomically, without NumPy, with only one piece of a tensor in memory at a time.

`atomic.py` writes each file under a temporary name in the same folder, syncs it and renames it.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from lastword.errors import InputError
from lastword.weights.files.atomic import StrPath, name_write_errors, replace_file
from lastword.weights.files.dtypes import dtype_name, safetensors_name, tensor_bytes
from lastword.weights.files.header import safetensors_header

_CHUNK = 16 * 1024 * 1024


class TensorSpec(NamedTuple):
    """The dtype and shape of a tensor to write."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Number of bytes that the tensor takes in a file."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} {list(self.shape)}"


TensorSpecs = Mapping[str, TensorSpec]


def write_safetensors(
    path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to one safetensors file, atomically.

    Args:
        path: the file; an existing file is replaced only when the new one is complete.
        tensors: tensors by name, on any device and with any strides.
        metadata: strings for the header's `__metadata__`.

    Raises:
        InputError: safetensors does not have the dtype of a tensor, or the file cannot be written.
    """
    specs = {name: TensorSpec(each.dtype, tuple(each.shape)) for name, each in tensors.items()}
    stream_safetensors(path, specs, tensors.__getitem__, metadata)


def stream_safetensors(
    path: StrPath,
    specs: TensorSpecs,
    read: Callable[[str], Tensor | Iterator[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, requesting each tensor only when its turn comes.

    Args:
        path: the file; an existing file is replaced only when the new one is complete.
        specs: dtype and shape of each tensor.
        read: takes a tensor's name and returns the whole tensor, or an iterator over pieces of any shape that together
            contain its elements in order. Each piece is written before the next one is requested.
        metadata: strings for the header's `__metadata__`.

    Raises:
        InputError: safetensors does not have a dtype, a tensor does not match its spec, or the file cannot be written.
    """
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header = safetensors_header(
        {name: _header_entry(path, name, specs[name]) for name in order}, metadata
    )
    with replace_file(path) as file, name_write_errors(path):
        file.write(header)
        for name in order:
            made, expected = read(name), specs[name]
            if isinstance(made, Tensor):
                spec = TensorSpec(made.dtype, tuple(made.shape))
                if spec != expected:
                    raise _spec_mismatch(path, name, str(spec), expected)
                made = iter((made,))
            for piece in _check_pieces(path, name, made, expected):
                _write_tensor(file, piece)


def _header_entry(path: StrPath, name: str, spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    stored = safetensors_name(spec.dtype)
    if stored is None:
        what = f"dtype {dtype_name(spec.dtype)} has no safetensors name"
        raise InputError(f"{path}: tensor {name}", what)
    return stored, spec.shape


def _check_pieces(
    path: StrPath, name: str, pieces: Iterator[Tensor], expected: TensorSpec
) -> Iterator[Tensor]:
    """Yield a tensor's pieces, after checking their dtype and total size against the spec."""
    count = 0
    for piece in pieces:
        count += piece.numel()
        if piece.dtype != expected.dtype or count > expected.numel:
            raise _spec_mismatch(
                path, name, f"{dtype_name(piece.dtype)} {count} elements", expected
            )
        yield piece
    if count != expected.numel:
        raise _spec_mismatch(path, name, f"{dtype_name(expected.dtype)} {count} elements", expected)


def _spec_mismatch(path: StrPath, name: str, got: str, expected: TensorSpec) -> InputError:
    where = f"{path}: tensor {name}"
    return InputError(where, "does not match its spec", got=got, expected=str(expected))


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's bytes directly from its memory, and release the file's page cache every `_CHUNK` bytes."""
    data = tensor_bytes(tensor)
    for start in range(0, len(data), _CHUNK):
        before = file.tell()
        file.write(data[start : start + _CHUNK])
        if before // _CHUNK < file.tell() // _CHUNK:
            _release_cache(file)


def _release_cache(file: BinaryIO) -> None:
    """Start writing the file's cached pages to the disk, and free the pages that are already there.

    Otherwise the operating system would cache gigabytes and start writing them to the disk only at the end, and every
    page of a large file would need new memory. This function does not wait for pages that are still being written.
    """
    if hasattr(os, "posix_fadvise"):
        file.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
