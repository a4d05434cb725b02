"""Read, check and create the header of a safetensors file.

A file begins with the header's length (8 bytes, little-endian), followed by the header as JSON and then the payload.
The payload is the tensors' data, one tensor after another. The whole header and the file's size are checked before any
tensor is read, so a truncated download, a damaged header or a gap is reported with the name of the file or tensor.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lastword.errors import WeightsError
from lastword.weights.files.dtypes import ELEMENT_SIZES
from lastword.weights.files.reading import (
    FOREIGN_BYTES,
    missing_file_error,
    open_regular,
    read_error,
    refuse_foreign,
)
from lastword.weights.json_fields import parse_object, show_value

# The format allows 100 MB, which take 3 GB when parsed; this limit is enough for 100,000 tensors.
MAX_HEADER_BYTES = 16 * 1024 * 1024
_MAX_RANK = 64  # as in torch; a product of millions of sizes would take hours
_MOST_ROWS = 10**15


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where and how a file stores one tensor.

    `dtype` is the safetensors name. `start` is the position of the tensor's first byte in the file. `version`, the
    file's size and time of last change when its header was read, shows whether the file has changed since then.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int
    version: tuple[int, int]

    def open(self) -> BinaryIO:
        """Open the file.

        Raises:
            OSError: the file cannot be opened, or has changed since its header was read.
        """
        file = open_regular(self.file)
        if _version(file) != self.version:
            file.close()
            raise OSError(errno.ESTALE, "it has changed since it was first opened", str(self.file))
        return file


def _version(file: BinaryIO) -> tuple[int, int]:
    """Return a file's size and time of last change; not its inode number, which may vary in a mounted bucket."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def safetensors_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    metadata: Mapping[str, str] | None = None,
    *,
    least: int = 0,
) -> bytes:
    """Create the bytes of a safetensors file that come before the payload: the length, and the header as JSON.

    Args:
        tensors: the safetensors dtype name and shape of each tensor, in the order of the payload.
        metadata: strings for `__metadata__`.
        least: minimum length of the JSON in bytes; shorter JSON is padded with spaces.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * ELEMENT_SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    length = -(-max(len(text), least) // 8) * 8  # aligns the payload to 8 bytes
    return length.to_bytes(8, "little") + text.ljust(length)


def growing_header(
    name: str, dtype: str, width: int, metadata: Callable[[int], Mapping[str, str]]
) -> Callable[[int], bytes]:
    """Return a function that takes a number of rows and returns the header of a file with one tensor of that many rows.

    The header has the same length for every number of rows. So a header can be written first, and overwritten when the
    number of rows is known.

    Args:
        name: the tensor's name.
        dtype: the safetensors name of the tensor's dtype.
        width: the tensor's number of columns.
        metadata: takes the number of rows and returns the strings for `__metadata__`.
    """

    def header(rows: int, least: int = 0) -> bytes:
        return safetensors_header({name: (dtype, (rows, width))}, metadata(rows), least=least)

    length = len(header(_MOST_ROWS)) - 8
    return lambda rows: header(rows, length)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file.

    Returns:
        The tensors by their names in the file, in the order in which they are stored.

    Raises:
        WeightsError: the file is missing, or shorter or longer than its header says, or the header is damaged.
    """
    try:
        with open_regular(path) as file:
            version = _version(file)
            size, _ = version
            length = _header_length(path, file.read(FOREIGN_BYTES), size)
            file.seek(8)
            raw = file.read(length)
    except (FileNotFoundError, NotADirectoryError):
        raise missing_file_error(path, "Download the checkpoint again.") from None
    except OSError as problem:
        raise read_error(path, problem) from None
    entries = parse_object(raw, f"{path}: header", WeightsError)
    _check_metadata(path, entries.pop("__metadata__", None))
    found = {
        name: _tensor(path, name, entry, 8 + length, version) for name, entry in entries.items()
    }
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].num_bytes)))
    _check_places(path, ordered.items(), 8 + length, size)
    return ordered


def _header_length(path: Path, start: bytes, size: int) -> int:
    """Read the header's length from the first bytes of a file."""
    # If a "{" follows the first 8 bytes, they are a header's length, even if they look like another format.
    if start[8:9] != b"{":
        refuse_foreign(path, start)
    if len(start) < 8:
        raise _truncation_error(path, size, "a safetensors header")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise WeightsError(
            str(path),
            "not a safetensors file",
            got=f"header length {length}, and the first bytes {show_value(start[:16])}",
            expected=f"at most {MAX_HEADER_BYTES}",
        )
    if 8 + length > size:
        raise _truncation_error(path, size, f"at least {8 + length} for the header")
    return length


def _truncation_error(path: Path, size: int, expected: str) -> WeightsError:
    return WeightsError(
        str(path),
        "truncated",
        got=f"{size} bytes",
        expected=expected,
        remedy="Download it again.",
    )


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        where = f"{path}: header: __metadata__"
        raise WeightsError(where, "wrong value", got=show_value(metadata), expected="strings")


def _are_naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _tensor(
    path: Path, name: str, entry: Any, payload: int, version: tuple[int, int]
) -> TensorInfo:
    where = _place(path, name)

    def refuse(what: str, got: object, expected: str) -> NoReturn:
        raise WeightsError(where, what, got=show_value(got), expected=expected)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        got = list(entry) if isinstance(entry, dict) else entry
        refuse("wrong entry", got, "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_SIZES:
        refuse("unknown dtype", dtype, "F32, BF16 or F16")
    if not _are_naturals(shape) or len(shape) > _MAX_RANK:
        refuse("wrong shape", shape, f"a list of at most {_MAX_RANK} sizes")
    if not _are_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse("wrong data_offsets", offsets, "[begin, end]")
    num_bytes = offsets[1] - offsets[0]
    needed = math.prod(shape) * ELEMENT_SIZES[dtype]
    if num_bytes != needed:
        raise WeightsError(
            where,
            f"wrong size for {dtype} {show_value(shape)}",
            got=f"{num_bytes} bytes",
            expected=str(needed),
            remedy="The header is damaged.",
        )
    return TensorInfo(path, dtype, tuple(shape), payload + offsets[0], num_bytes, version)


def _place(path: Path, name: str) -> str:
    """Return the file and tensor for a message; the name is escaped, since in a damaged header it may be anything."""
    return f"{path}: tensor {show_value(name)}"


def _check_places(
    path: Path, tensors: Iterable[tuple[str, TensorInfo]], start: int, size: int
) -> None:
    """Check that the tensors fill the payload without gaps or overlaps and end where the file ends."""
    end = start
    for name, info in tensors:
        if info.start != end:
            what = "overlaps the previous tensor" if info.start < end else "a gap before the tensor"
            got, expected = f"offset {info.start}", str(end)
            raise WeightsError(_place(path, name), what, got=got, expected=expected)
        end += info.num_bytes
    if size < end:
        raise _truncation_error(path, size, str(end))
    if size > end:
        raise WeightsError(str(path), "trailing bytes", got=f"{size} bytes", expected=str(end))
