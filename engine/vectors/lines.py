"""Read stored vectors from JSON lines, one group of lines at a time."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

import torch
from torch import Tensor

from lastword.cli.documents.chunks import place_fields
from lastword.cli.read import Record
from lastword.errors import InputError
from lastword.vectors.made import Made
from lastword.vectors.stored_record import TextSource, own_id, place_of, text_in
from lastword.weights import parse_object
from lastword.weights.files.dtypes import torch_dtype

_GROUP = 1024
_DAMAGED = "Embed the texts again."


class LinesFile:
    """Vectors in a file of JSON lines, each the last field of its line.

    Args:
        path: the file.
        made: how the vectors were made.
        count: the number of vectors that the file should hold; None if it is not known.
        source: what makes the texts; None if they are not stored.
        header: whether the first line holds the metadata.
        places: whether `embed` has added the fields of `PLACE` to each record; if not, fields of these names are the
            record's own.
    """

    has_fields = True

    def __init__(
        self,
        path: str,
        made: Made,
        count: int | None,
        source: TextSource,
        *,
        header: bool,
        places: bool,
    ) -> None:
        self.name, self.count = path, count
        self._made, self._source, self._before = made, source, int(header)
        self._places, self.has_texts = places, source is not None
        self._starts: list[int] = []  # where each group begins in the file
        self._dtype = torch_dtype(made.layout.safetensors)
        self._field = ""

    def blocks(self) -> Iterator[Tensor]:
        """Yield the stored codes [n, width], in order.

        Raises:
            InputError: a line holds no such vector, or the number of vectors is not `count`.
        """
        row = 0
        self._starts = []
        with open(self.name, "rb") as file:
            for _ in range(self._before):
                file.readline()
            start = file.tell()
            while lines := list(islice(file, _GROUP)):
                self._starts.append(start)
                start += sum(map(len, lines))
                vectors = [self._vector(line, row + i) for i, line in enumerate(lines)]
                row += len(lines)
                yield torch.tensor(vectors, dtype=self._dtype, device="cpu")
        if self.count is not None and row != self.count:
            expected = f"{self.count:,}"
            raise InputError(
                self.name, "damaged", got=f"{row:,} vectors", expected=expected, remedy=_DAMAGED
            )

    def records(self, rows: Sequence[int]) -> Iterator[Record]:
        """Yield the record of each of these rows, given in ascending order; first read `blocks` to its end."""
        with open(self.name, "rb") as file:
            for group, members in groupby(rows, lambda row: row // _GROUP):
                file.seek(self._starts[group])
                after = group * _GROUP  # the row of the next line
                for row in members:
                    yield self._record(next(islice(file, row - after, None)), row)
                    after = row + 1

    def _where(self, row: int) -> str:
        return f"{self.name}:{row + 1 + self._before}"

    def _split(self, line: bytes, row: int) -> tuple[bytes, bytes]:
        """Return what is before the vector in a line, and the vector as JSON."""
        if not self._field:
            fields = parse_object(line, self._where(row), InputError)
            self._field = f"{json.dumps(list(fields)[-1], ensure_ascii=False)}: [" if fields else ""
        head, found, tail = line.rstrip(b"\r\n").rpartition(self._field.encode() or b"\n")
        if not found or not tail.endswith(b"]}"):
            what = "does not end with a vector"
            raise InputError(self._where(row), what, remedy=_DAMAGED)
        return head.removesuffix(b", "), b"[" + tail[:-1]

    def _vector(self, line: bytes, row: int) -> list[float]:
        _, stored = self._split(line, row)
        try:
            vector: list[float] = json.loads(stored)
        except ValueError as error:
            raise InputError(self._where(row), "its vector is damaged", remedy=_DAMAGED) from error
        if len(vector) != self._made.width or not self._fits(vector):
            got = f"{len(vector)} elements" if len(vector) != self._made.width else None
            expected = f"{self._made.width} numbers, {self._made.precision}"
            raise InputError(
                self._where(row),
                "its vector is damaged",
                got=got,
                expected=expected,
                remedy=_DAMAGED,
            )
        return vector

    def _fits(self, vector: list[float]) -> bool:
        """Return whether every value can be an element of these vectors."""
        kinds = set(map(type, vector))
        if self._dtype.is_floating_point:
            return kinds <= {float, int}
        limits = torch.iinfo(self._dtype)
        return kinds == {int} and limits.min <= min(vector) and max(vector) <= limits.max

    def _record(self, line: bytes, row: int) -> Record:
        where = self._where(row)
        head = self._split(line, row)[0].decode()
        fields = parse_object(head + "}", where, InputError)
        place = place_of(fields, where) if self._places else None
        text = text_in(fields, self._source, where)
        path, number, chunk = place or (self.name, row + 1 + self._before, None)
        own, names = own_id(fields.get("id")), frozenset(fields)
        found = Record(text, path, number, names, head, chunk, own, self.has_texts)
        # `embed` has added the place after the record's own fields.
        return (
            found
            if place is None
            else replace(found, fields=head.removesuffix(place_fields(found)).removesuffix(", "))
        )
