"""Vectors to JSON lines, safetensors or npy, one at a time, in constant memory and without NumPy.

A writer is given a byte stream and never opens a file; `weights/files/atomic.py` makes the file appear whole.
The binary formats begin with a header that holds the number of texts, known only at the end: it
is written once with room for any number and again, over itself, when the last vector is in.
"""

import ctypes
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from lastword.cli.console import attempt, put
from lastword.cli.read import Record

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("jsonl", "safetensors", "npy")
MOST_TEXTS = 10**15
Header = Callable[[int], bytes]


class Layout(NamedTuple):
    """How a precision is stored: safetensors and NumPy names, bytes, values a byte, JSON form."""

    safetensors: str
    numpy: str
    size: int
    packed: int
    number: str


LAYOUTS = {
    "float32": Layout("F32", "<f4", 4, 1, "%.9g"),
    "float16": Layout("F16", "<f2", 2, 1, "%.5g"),
    "int8": Layout("I8", "|i1", 1, 1, "%d"),
    "uint8": Layout("U8", "|u1", 1, 1, "%d"),
    "binary": Layout("I8", "|i1", 1, 8, "%d"),
    "ubinary": Layout("U8", "|u1", 1, 8, "%d"),
}


def numbers(layout: Layout, dim: int) -> str:
    """Return the printf template of one vector; enough digits to read the same values back."""
    return ", ".join([layout.number] * (dim // layout.packed))


class Writer(Protocol):
    """Takes the records in order, each with its vector, then the end."""

    def write(self, record: Record, vector: "Tensor") -> None:
        """Take the next record and its vector."""

    def finish(self) -> None:
        """Take note that there are no more."""


class JsonLines:
    """A JSON object a line: the record's own fields, its vector, and the two fingerprints."""

    def __init__(
        self, stream: BinaryIO, name: str, field: str, numbers: str, signature: Mapping[str, str]
    ) -> None:
        self._stream, self._name, self._numbers = stream, name, numbers
        self._field = json.dumps(field, ensure_ascii=False)
        self._signature = json.dumps(dict(signature))[1:]

    def write(self, record: Record, vector: "Tensor") -> None:
        """Append a line."""
        values = self._numbers % tuple(vector.tolist())
        line = f"{record.fields}, {self._field}: [{values}], {self._signature}\n"
        put(self._stream, line.encode("utf-8"), self._name)

    def finish(self) -> None:
        """Give everything to the system."""
        attempt(self._stream.flush, self._name)


class Matrix:
    """A header, then the vectors as rows of bytes."""

    def __init__(self, stream: BinaryIO, name: str, header: Header) -> None:
        self._stream, self._name, self._header, self._texts = stream, name, header, 0
        put(stream, header(MOST_TEXTS), name)

    def write(self, record: Record, vector: "Tensor") -> None:  # noqa: ARG002  a Writer's signature
        """Append a row."""
        put(self._stream, tensor_bytes(vector), self._name)
        self._texts += 1

    def finish(self) -> None:
        """Write the header again, now with the number of texts."""
        attempt(lambda: self._stream.seek(0), self._name)
        put(self._stream, self._header(self._texts), self._name)


def tensor_bytes(tensor: "Tensor") -> bytes:
    """Return the bytes of a tensor in row order, without NumPy."""
    tensor = tensor.cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def safetensors_header(name: str, layout: Layout, dim: int, metadata: Mapping[str, str]) -> Header:
    """Return the header of a file with one tensor [texts, width] as a function of texts.

    Its length is the same for every number of texts and a multiple of 8, as the format advises.
    """
    width = dim // layout.packed

    def body(texts: int) -> bytes:
        tensor = {
            "dtype": layout.safetensors,
            "shape": [texts, width],
            "data_offsets": [0, texts * width * layout.size],
        }
        fields = {"__metadata__": {**metadata, "texts": str(texts)}, name: tensor}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    length = -(-len(body(MOST_TEXTS)) // 8) * 8
    return lambda texts: length.to_bytes(8, "little") + body(texts).ljust(length)


def npy_header(layout: Layout, dim: int) -> Header:
    """Return the 128-byte header of a NumPy file, format 1.0, as a function of texts."""

    def header(texts: int) -> bytes:
        shape = f"({texts}, {dim // layout.packed})"
        body = f"{{'descr': '{layout.numpy}', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + body.ljust(117).encode() + b"\n"

    return header


def sidecar(metadata: Mapping[str, str], texts: int) -> bytes:
    """Return the JSON file that stands beside a NumPy file, which has no room for metadata."""
    fields = {**metadata, "texts": str(texts)}
    return json.dumps(fields, ensure_ascii=False, indent=2).encode("utf-8") + b"\n"
