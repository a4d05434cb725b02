"""A safetensors writer that needs no NumPy, holds one piece of a tensor at a time and never leaves half a file.

`atomic.py` writes it under a temporary name beside its goal, gives it to the disk and renames it.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from lastword.errors import InputError
from lastword.weights.files.atomic import StrPath, whole_file, writing
from lastword.weights.files.dtypes import dtype_name, safetensors_name, tensor_bytes
from lastword.weights.files.header import safetensors_header

_CHUNK = 16 * 1024 * 1024


class TensorSpec(NamedTuple):
    """What a tensor is before it is there."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Count the elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Count the bytes that it takes in a file."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} {list(self.shape)}"


TensorSpecs = Mapping[str, TensorSpec]


def write_safetensors(
    path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to one safetensors file, atomically.

    Args:
        path: the file; an old one is replaced only when the new one is whole.
        tensors: name → tensor, any device, any strides.
        metadata: strings for the header's `__metadata__`.

    Raises:
        InputError: a dtype that the format lacks, or a file that cannot be written.
    """
    specs = {name: TensorSpec(each.dtype, tuple(each.shape)) for name, each in tensors.items()}
    stream_safetensors(path, specs, tensors.__getitem__, metadata)


def stream_safetensors(
    path: StrPath,
    specs: TensorSpecs,
    read: Callable[[str], Tensor | Iterator[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whose tensors are made one by one, when their turn comes.

    `read` gives a tensor whole, or as an iterator of its elements in order, in pieces of any shape;
    each is written before the next is asked for.
    """
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header = safetensors_header(
        {name: _stored(path, name, specs[name]) for name in order}, metadata
    )
    with whole_file(path) as file, writing(path):
        file.write(header)
        for name in order:
            made, expected = read(name), specs[name]
            if isinstance(made, Tensor):
                spec = TensorSpec(made.dtype, tuple(made.shape))
                if spec != expected:
                    raise _unlike(path, name, str(spec), expected)
                made = iter((made,))
            for piece in _held_to(path, name, made, expected):
                _write_tensor(file, piece)


def _stored(path: StrPath, name: str, spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    stored = safetensors_name(spec.dtype)
    if stored is None:
        what = f"dtype {dtype_name(spec.dtype)} has no safetensors name"
        raise InputError(f"{path}: tensor {name}", what)
    return stored, spec.shape


def _held_to(
    path: StrPath, name: str, pieces: Iterator[Tensor], expected: TensorSpec
) -> Iterator[Tensor]:
    """Pass a tensor's pieces on, their dtype and count held to what was announced."""
    count = 0
    for piece in pieces:
        count += piece.numel()
        if piece.dtype != expected.dtype or count > expected.numel:
            raise _unlike(path, name, f"{dtype_name(piece.dtype)} {count} elements", expected)
        yield piece
    if count != expected.numel:
        raise _unlike(path, name, f"{dtype_name(expected.dtype)} {count} elements", expected)


def _unlike(path: StrPath, name: str, got: str, expected: TensorSpec) -> InputError:
    where = f"{path}: tensor {name}"
    return InputError(where, "unlike its announcement", got=got, expected=str(expected))


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's bytes straight from its memory."""
    data = tensor_bytes(tensor)
    for start in range(0, len(data), _CHUNK):
        before = file.tell()
        file.write(data[start : start + _CHUNK])
        if before // _CHUNK < file.tell() // _CHUNK:
            _pass_on(file)


def _pass_on(file: BinaryIO) -> None:
    """Let the disk begin with what is written, and take back the memory of what it has.

    Without this the system keeps gigabytes, the disk begins when the work has ended, and every page of a
    large file is a fresh one. Pages on their way to the disk are not waited for.
    """
    if hasattr(os, "posix_fadvise"):
        file.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
