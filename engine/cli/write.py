"""Vectors to JSON lines, safetensors or npy, a group at a time, in constant memory and without NumPy.

A writer is given a byte stream and never opens a file; `weights/files/atomic.py` makes the file appear whole.
The binary formats begin with a header that holds the number of texts, known only at the end: it
is written once with room for any number and again, over itself, when the last vector is in.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from lastword.cli.console import attempt, put
from lastword.cli.read import Record

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("jsonl", "safetensors", "npy")
MOST_TEXTS = 10**15
ROWS_AT_ONCE = 16  # as Python numbers: eight times the memory, and soon more than a core caches
Header = Callable[[int], bytes]


class Layout(NamedTuple):
    """How a precision is stored: names of the dtype in safetensors and NumPy, values per element, JSON form."""

    safetensors: str
    numpy: str
    packed: int
    number: str


LAYOUTS = {
    "float32": Layout("F32", "<f4", 1, "%.9g"),
    "float16": Layout("F16", "<f2", 1, "%.5g"),
    "int8": Layout("I8", "|i1", 1, "%d"),
    "uint8": Layout("U8", "|u1", 1, "%d"),
    "binary": Layout("I8", "|i1", 8, "%d"),
    "ubinary": Layout("U8", "|u1", 8, "%d"),
}


def numbers(layout: Layout, dim: int) -> str:
    """Return the printf template of one vector; enough digits to read the same values back."""
    return ", ".join([layout.number] * (dim // layout.packed))


class Writer(Protocol):
    """Takes the records in order, a group at a time with its matrix of vectors, then the end."""

    def write(self, records: Sequence[Record], matrix: "Tensor") -> None:
        """Take the next records and their vectors, a row each."""

    def finish(self) -> None:
        """Take note that there are no more."""


class JsonLines:
    """A JSON object per line: the record's own fields and its vector; before them a header where there is one."""

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        field: str,
        numbers: str,
        header: Mapping[str, str] | None = None,
    ) -> None:
        self._stream, self._name, self._numbers = stream, name, numbers
        self._field = json.dumps(field, ensure_ascii=False)
        if header is not None:
            line = json.dumps({"lastword": dict(header)}, ensure_ascii=False)
            put(stream, f"{line}\n".encode(), name)

    def write(self, records: Sequence[Record], matrix: "Tensor") -> None:
        """Append a line per record."""
        for start in range(0, len(records), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            lines = (
                f"{record.fields}, {self._field}: [{self._numbers % tuple(row)}]}}\n"
                for record, row in zip(records[part], matrix[part].tolist(), strict=True)
            )
            put(self._stream, "".join(lines).encode("utf-8"), self._name)

    def finish(self) -> None:
        """Give everything to the system."""
        attempt(self._stream.flush, self._name)


class Matrix:
    """A header, then the vectors as rows of bytes."""

    def __init__(self, stream: BinaryIO, name: str, header: Header) -> None:
        self._stream, self._name, self._header, self._texts = stream, name, header, 0
        put(stream, header(MOST_TEXTS), name)

    def write(self, records: Sequence[Record], matrix: "Tensor") -> None:
        """Append a row per record."""
        from lastword.weights import tensor_bytes

        put(self._stream, tensor_bytes(matrix), self._name)
        self._texts += len(records)

    def finish(self) -> None:
        """Write the header again, now with the number of texts."""
        attempt(lambda: self._stream.seek(0), self._name)
        put(self._stream, self._header(self._texts), self._name)


def safetensors_header(name: str, layout: Layout, dim: int, metadata: Mapping[str, str]) -> Header:
    """Return the header of a file with one tensor [texts, width] as a function of texts."""
    from lastword.weights import growing_header

    def described(texts: int) -> dict[str, str]:
        return {**metadata, "texts": str(texts)}

    return growing_header(name, layout.safetensors, dim // layout.packed, described)


def npy_header(layout: Layout, dim: int) -> Header:
    """Return the 128-byte header of a NumPy file, format 1.0, as a function of texts."""

    def header(texts: int) -> bytes:
        shape = f"({texts}, {dim // layout.packed})"
        body = f"{{'descr': '{layout.numpy}', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + body.ljust(117).encode() + b"\n"

    return header


def sidecar(metadata: Mapping[str, str], texts: int) -> bytes:
    """Return the JSON file that stands beside a file of JSON lines or NumPy's, which have no room for metadata."""
    fields = {**metadata, "texts": str(texts)}
    return json.dumps(fields, ensure_ascii=False, indent=2).encode("utf-8") + b"\n"
