"""A safetensors writer that needs no NumPy, holds one piece of a tensor at a time and never leaves half a file.

`atomic.py` writes it under a temporary name beside its goal, gives it to the disk and renames it.
"""

import ctypes
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from lastword.errors import InputError
from lastword.weights.files.atomic import whole_file, writing

_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64",
    torch.int8: "I8", torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_CHUNK = 16 * 1024 * 1024

Spec = tuple[torch.dtype, tuple[int, ...]]
Layout = Mapping[str, Spec]


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to one safetensors file, atomically.

    Args:
        path: the file; an old one is replaced only when the new one is whole.
        tensors: name → tensor, any device, any strides.
        metadata: strings for the header's `__metadata__`.

    Raises:
        InputError: a dtype that the format lacks, or a file that cannot be written.
    """
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_safetensors(path, layout, tensors.__getitem__, metadata)


def stream_safetensors(
    path: str | os.PathLike[str],
    layout: Layout,
    read: Callable[[str], Tensor | Iterator[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whose tensors are made one by one, when their turn comes.

    `read` gives a tensor whole, or as an iterator of its elements in order, in pieces of any shape;
    each is written before the next is asked for.
    """
    order = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))
    header = _header(path, layout, order, metadata)
    with whole_file(path) as file, writing(path):
        file.write(struct.pack("<Q", len(header)) + header)
        for name in order:
            made = read(name)
            if isinstance(made, Tensor):
                if (made.dtype, tuple(made.shape)) != layout[name]:
                    raise _unlike(path, name, (made.dtype, list(made.shape)), layout[name])
                made = iter((made,))
            for piece in _held_to(path, name, made, layout[name]):
                _write_tensor(file, piece)


def _header(
    path: str | os.PathLike[str],
    layout: Layout,
    order: list[str],
    metadata: Mapping[str, str] | None,
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        dtype, shape = layout[name]
        if dtype not in _NAMES:
            raise InputError(f"{path}: tensor {name}: dtype {dtype} has no safetensors name")
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)  # the payload begins aligned to 8 bytes


def _held_to(
    path: str | os.PathLike[str], name: str, pieces: Iterator[Tensor], expected: Spec
) -> Iterator[Tensor]:
    """Pass a tensor's pieces on, their dtype and count held to what was announced."""
    dtype, size = expected[0], torch.Size(expected[1]).numel()
    count = 0
    for piece in pieces:
        count += piece.numel()
        if piece.dtype != dtype or count > size:
            raise _unlike(path, name, (piece.dtype, f"{count} elements"), expected)
        yield piece
    if count != size:
        raise _unlike(path, name, (dtype, f"{count} elements"), expected)


def _unlike(
    path: str | os.PathLike[str], name: str, got: tuple[torch.dtype, object], expected: Spec
) -> InputError:
    return InputError(f"{path}: tensor {name}; got {got[0]} {got[1]}, expected {expected}")


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's bytes straight from its memory."""
    whole = tensor.detach().to("cpu").contiguous()
    num_bytes = whole.numel() * whole.element_size()
    for start in range(0, num_bytes, _CHUNK):
        size = min(_CHUNK, num_bytes - start)
        before = file.tell()
        file.write((ctypes.c_char * size).from_address(whole.data_ptr() + start))
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
