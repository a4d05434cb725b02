"""Write vectors as JSON lines, safetensors or npy, one group at a time, in constant memory and without NumPy.

A writer gets a byte stream and never opens a file; `weights/files/atomic.py` replaces the file once it is complete.
The header of the binary formats holds the number of texts, which is known only at the end. The header is therefore
written first with space for any number, and overwritten after the last vector.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from lastword.cli.console import attempt, put
from lastword.cli.read import Record, more_fields

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("jsonl", "safetensors", "npy")
MOST_TEXTS = 10**15
# Rows converted to text at once. As Python numbers, their values take eight times the memory; more rows would not fit
# in a core's cache.
ROWS_AT_ONCE = 16
Header = Callable[[int], bytes]
# Keys of the metadata whose values are numbers in JSON; a safetensors header holds text only.
NUMBERS = ("fingerprints", "dim", "texts", "chunk", "overlap")


class ElementType(NamedTuple):
    """How the vectors of one precision are stored in each format."""

    safetensors: str  # dtype name
    numpy: str  # dtype name
    packed: int  # vector values per stored element
    number: str  # printf format of one element in JSON


ELEMENT_TYPES = {
    "float32": ElementType("F32", "<f4", 1, "%.9g"),
    "float16": ElementType("F16", "<f2", 1, "%.5g"),
    "int8": ElementType("I8", "|i1", 1, "%d"),
    "uint8": ElementType("U8", "|u1", 1, "%d"),
    "binary": ElementType("I8", "|i1", 8, "%d"),
    "ubinary": ElementType("U8", "|u1", 8, "%d"),
}


def numbers(layout: ElementType, dim: int) -> str:
    """Return the printf template of one vector, with enough digits to read back the same values."""
    return ", ".join([layout.number] * (dim // layout.packed))


class Writer(Protocol):
    """Writes groups of records with their vectors, in order."""

    def write(self, records: Sequence[Record], matrix: "Tensor") -> None:
        """Write the next n records and their vectors [n, width], one row per record."""

    def finish(self) -> None:
        """Complete the output after the last group."""


class JsonLines:
    """Writes one line per record, a JSON object with the record's fields and its vector; a header line may come first.

    Args:
        stream: the output.
        name: the name of `stream` in messages.
        field: the name of the field that holds the vector.
        numbers: the printf template of a vector (see `numbers`).
        header: metadata for the first line, or None for no such line.
    """

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
            line = json.dumps({"lastword": _with_numbers(header)}, ensure_ascii=False)
            put(stream, f"{line}\n".encode(), name)

    def write(self, records: Sequence[Record], matrix: "Tensor") -> None:
        """Append one line per record."""
        for start in range(0, len(records), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            lines = (
                f"{more_fields(record.fields)}{self._field}: [{self._numbers % tuple(row)}]}}\n"
                for record, row in zip(records[part], matrix[part].tolist(), strict=True)
            )
            put(self._stream, "".join(lines).encode("utf-8"), self._name)

    def finish(self) -> None:
        """Flush the stream."""
        attempt(self._stream.flush, self._name)


class Matrix:
    """Writes a binary header, then one row of bytes per vector.

    Args:
        stream: the output, a regular file.
        name: the name of `stream` in messages.
        header: function that returns the header for a given number of texts.
    """

    def __init__(self, stream: BinaryIO, name: str, header: Header) -> None:
        self._stream, self._name, self._header, self._texts = stream, name, header, 0
        put(stream, header(MOST_TEXTS), name)

    def write(self, records: Sequence[Record], matrix: "Tensor") -> None:
        """Append one row per record."""
        from lastword.weights import tensor_bytes

        put(self._stream, tensor_bytes(matrix), self._name)
        self._texts += len(records)

    def finish(self) -> None:
        """Overwrite the header, now with the number of texts."""
        attempt(lambda: self._stream.seek(0), self._name)
        put(self._stream, self._header(self._texts), self._name)


class Places:
    """Writes OUT.rows.jsonl: per vector of a binary file, the place and id of its text; for a chunk, also the text.

    Args:
        stream: the output.
        name: the name of `stream` in messages.
        with_text: whether to write the texts of chunks.
    """

    def __init__(self, stream: BinaryIO, name: str, *, with_text: bool = True) -> None:
        self._stream, self._name, self._with_text = stream, name, with_text

    def write(self, records: Sequence[Record]) -> None:
        """Append one line per record."""
        lines = "".join(f"{self._row(record)}\n" for record in records)
        put(self._stream, lines.encode(), self._name)

    def finish(self) -> None:
        """Flush the stream."""
        attempt(self._stream.flush, self._name)

    def _row(self, record: Record) -> str:
        row: dict[str, str | int | float] = {**record.place()}
        if record.id is not None:
            row["id"] = record.id
        if record.chunk is not None and self._with_text:
            row["text"] = record.text
        return json.dumps(row, ensure_ascii=False)


def safetensors_header(
    name: str, layout: ElementType, dim: int, metadata: Mapping[str, str]
) -> Header:
    """Return a function that takes a number of texts and returns the header of a file with a tensor [texts, width]."""
    from lastword.weights import growing_header

    def with_number(texts: int) -> dict[str, str]:
        return {**metadata, "texts": str(texts)}

    return growing_header(name, layout.safetensors, dim // layout.packed, with_number)


def npy_header(layout: ElementType, dim: int) -> Header:
    """Return a function that takes a number of texts and returns the 128-byte header of a NumPy file, format 1.0."""

    def header(texts: int) -> bytes:
        shape = f"({texts}, {dim // layout.packed})"
        body = f"{{'descr': '{layout.numpy}', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + body.ljust(117).encode() + b"\n"

    return header


def sidecar(metadata: Mapping[str, str], texts: int) -> bytes:
    """Return the content of OUT.json: the metadata of a .jsonl or .npy file, which cannot hold its own."""
    fields = _with_numbers({**metadata, "texts": str(texts)})
    return json.dumps(fields, ensure_ascii=False, indent=2).encode("utf-8") + b"\n"


def _with_numbers(metadata: Mapping[str, str]) -> dict[str, str | int]:
    return {name: int(value) if name in NUMBERS else value for name, value in metadata.items()}
