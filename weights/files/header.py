"""The header of one safetensors file, read and checked before any tensor is touched.

Layout: 8 bytes little-endian length, that many bytes of JSON, then the payload. Everything the header says
is checked against the file's size, so a truncated download, a flipped bit or a gap is found by name.
"""

import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lastword.errors import WeightsError
from lastword.weights.json_fields import parse_json, shown

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file; `start` counts from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file.

    Returns:
        The tensors by the names in the file, in order of their place.

    Raises:
        WeightsError: the file is missing, truncated or too long, or the header contradicts itself.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = _header_length(path, file.read(8), size)
            raw = file.read(length)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file. Download the checkpoint again") from None
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read; {problem.strerror}") from None
    entries = parse_json(raw, f"{path}: header", WeightsError)
    if not isinstance(entries, dict):
        raise WeightsError(f"{path}: header; got a list, expected a JSON object")
    _check_metadata(path, entries.pop("__metadata__", None))
    found = {name: _tensor(path, name, entry, 8 + length) for name, entry in entries.items()}
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].num_bytes)))
    _check_places(path, ordered.items(), 8 + length, size)
    return ordered


def _header_length(path: Path, first: bytes, size: int) -> int:
    if len(first) < 8:
        raise WeightsError(f"{path}: truncated; got {size} bytes, expected a safetensors header")
    length = int(struct.unpack("<Q", first)[0])
    if length > MAX_HEADER_BYTES:
        raise WeightsError(
            f"{path}: not a safetensors file; header length {length}, at most {MAX_HEADER_BYTES}"
        )
    if 8 + length > size:
        raise WeightsError(
            f"{path}: truncated; got {size} bytes, expected at least {8 + length} for the header. "
            "Download it again"
        )
    return length


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsError(f"{path}: header: __metadata__; got {shown(metadata)}, expected strings")


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _tensor(path: Path, name: str, entry: Any, payload: int) -> TensorInfo:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{where}: got {shown(entry)}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise WeightsError(f"{where}: unknown dtype; got {shown(dtype)}, expected F32, BF16 or F16")
    if not _naturals(shape):
        raise WeightsError(f"{where}: shape; got {shown(shape)}, expected a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise WeightsError(f"{where}: data_offsets; got {shown(offsets)}, expected [begin, end]")
    num_bytes = offsets[1] - offsets[0]
    needed = math.prod(shape) * _SIZES[dtype]
    if num_bytes != needed:
        raise WeightsError(
            f"{where}: {dtype} {shape}; got {num_bytes} bytes, expected {needed}. The header is damaged"
        )
    return TensorInfo(path, dtype, tuple(shape), payload + offsets[0], num_bytes)


def _check_places(
    path: Path, tensors: Iterable[tuple[str, TensorInfo]], start: int, size: int
) -> None:
    """Hold the payload to one gapless run of tensors that ends where the file ends."""
    end = start
    for name, info in tensors:
        if info.start != end:
            what = "overlaps the one before" if info.start < end else "leaves a gap before it"
            raise WeightsError(
                f"{path}: tensor {shown(name)} {what}; got offset {info.start}, expected {end}"
            )
        end += info.num_bytes
    if size < end:
        raise WeightsError(
            f"{path}: truncated; got {size} bytes, expected {end}. Download it again"
        )
    if size > end:
        raise WeightsError(f"{path}: trailing bytes; got {size} bytes, expected {end}")
