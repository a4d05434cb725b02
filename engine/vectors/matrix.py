"""Read stored vectors from .npy and .safetensors files, memory-mapped, and the places of their texts beside them."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from lastword.cli.read import Record
from lastword.cli.write import npy_header
from lastword.errors import InputError, LastwordError
from lastword.vectors.made import Made
from lastword.vectors.stored_record import own_id, place_of, without_fields
from lastword.weights import parse_object
from lastword.weights.files.dtypes import ELEMENT_SIZES
from lastword.weights.files.file_tensor import map_tensor
from lastword.weights.files.header import TensorInfo, read_header

# Bytes of fp32 vectors that are compared at once; they fit in a core's cache.
BLOCK_BYTES = 1 << 22
_DAMAGED = "Embed the texts again."
_LONGEST = 1 << 28  # the most bytes of the first line that are read


class MatrixFile:
    """Vectors in a .npy or .safetensors file.

    Args:
        path: the file.
        made: how the vectors were made.
        count: the number of vectors that the file should hold; None if it is not known.
        rows: the file with the places of the texts; it need not exist.

    Raises:
        InputError: the file does not hold such vectors.
    """

    def __init__(self, path: str, made: Made, count: int | None, rows: str) -> None:
        self.name, self._made = path, made
        self._rows = rows if os.path.isfile(rows) else None
        try:
            kind = path.rpartition(".")[2].lower()
            self._info = _npy(path, made, count) if kind == "npy" else _safetensors(path, made)
        except LastwordError as error:
            raise _without_remedy(error) from None
        self.count: int | None = self._info.shape[0]
        if count is not None and self.count != count:
            got = f"{self.count:,} vectors"
            raise InputError(path, "damaged", got=got, expected=f"{count:,}", remedy=_DAMAGED)
        self.has_fields = False
        self.has_texts = self._begins_with_a_text()

    def blocks(self) -> Iterator[Tensor]:
        """Yield the stored codes [n, width], in order."""
        if not self.count:
            return
        try:
            whole = map_tensor(self._info, "of vectors")
        except LastwordError as error:
            raise _without_remedy(error) from None
        yield from in_parts(whole, max(1, BLOCK_BYTES // (4 * self._made.dim)))

    def records(self, rows: Sequence[int]) -> Iterator[Record]:
        """Yield the record of each of these rows, given in ascending order; it has a text only if one is stored.

        Raises:
            InputError: the file of places is damaged, or does not fit the vectors.
        """
        if self._rows is None:
            for row in rows:
                yield without_fields((self.name, row + 1, None), None)
            return
        wanted, lines = set(rows), 0
        with open(self._rows, "rb") as file:
            for number, line in enumerate(file):
                lines += 1
                if number in wanted:
                    yield self._record(line, f"{self._rows}:{number + 1}")
        if lines != self.count:
            raise InputError(
                self._rows,
                "does not belong to the vectors beside it",
                got=f"{lines:,} lines",
                expected=f"{self.count:,}, as in {self.name}",
                remedy=_DAMAGED,
            )

    def _record(self, line: bytes, where: str) -> Record:
        fields = parse_object(line, where, InputError)
        place, text = place_of(fields, where), fields.get("text")
        if place is None or not isinstance(text, str | None):
            raise InputError(where, "its place is damaged", remedy=_DAMAGED)
        return without_fields(place, text, own_id(fields.get("id")))

    def _begins_with_a_text(self) -> bool:
        """Return whether the file of places holds the texts of chunks, judging by its first line."""
        if self._rows is None:
            return False
        with open(self._rows, "rb") as file:
            first = file.readline(_LONGEST)
        try:
            return "text" in json.loads(first)
        except (ValueError, TypeError, RecursionError):
            return False


def in_parts(matrix: Tensor, rows: int) -> Iterator[Tensor]:
    """Yield the matrix in parts of at most `rows` rows, as views."""
    return (matrix[start : start + rows] for start in range(0, len(matrix), rows))


def _npy(path: str, made: Made, count: int | None) -> TensorInfo:
    """Check a .npy file against the header that `embed` writes for these settings and this number of vectors."""
    expected = npy_header(made.layout, made.dim)(count or 0)
    size = (count or 0) * made.width * ELEMENT_SIZES[made.layout.safetensors]
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        header = file.read(len(expected))
    if header != expected:
        what = "its header does not fit its metadata"
        raise InputError(path, what, expected=f"{count:,} × {made.width} {made.layout.numpy}")
    if status.st_size != len(expected) + size:
        what = "truncated" if status.st_size < len(expected) + size else "trailing bytes"
        need = f"{len(expected) + size:,}"
        raise InputError(path, what, got=f"{status.st_size:,} bytes", expected=need)
    version = (status.st_size, status.st_mtime_ns)
    shape = (count or 0, made.width)
    return TensorInfo(Path(path), made.layout.safetensors, shape, len(expected), size, version)


def _safetensors(path: str, made: Made) -> TensorInfo:
    """Return the only tensor of a file, if it is a matrix of these vectors."""
    tensors = read_header(Path(path))
    found = next(iter(tensors.values()), None)
    expected = f"one tensor of {made.width} columns, {made.layout.safetensors}"
    if found is None or len(tensors) != 1:
        raise InputError(path, "damaged", got=f"{len(tensors)} tensors", expected=expected)
    if found.dtype != made.layout.safetensors or found.shape[1:] != (made.width,):
        got = f"{list(found.shape)} {found.dtype}"
        raise InputError(path, "damaged", got=got, expected=expected)
    return found


def _without_remedy(error: LastwordError) -> InputError:
    """Return the same error with the remedy for a file of vectors: to embed the texts again, not to download it."""
    return InputError(
        error.where, error.what, got=error.got, expected=error.expected, remedy=_DAMAGED
    )
