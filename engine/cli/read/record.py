"""A record: a text with its place in the input and its other fields; and what becomes of one that is bad."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lastword.errors import InputError, list_some

# The fields that tell the place of a text.
PLACE = ("path", "line", "chunk", "start", "end")
# Called with the error of a record, the path of its file and its line; where it returns, the record is left out.
Bad = Callable[[InputError, str, int | None], None]


def stop(error: InputError, path: str, line: int | None) -> None:  # noqa: ARG001  a Bad
    """Raise the error of a record."""
    raise error


class Chunk(NamedTuple):
    """The place of a piece in its text: its number, from 0, and the characters where it starts and ends."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Record:
    """A text with its place in the input and the other fields of its record.

    `fields` is the record as a JSON object without its closing brace. Of JSON lines it is what was written, copied
    unparsed, so numbers keep all their digits; otherwise it is made from the columns. `line` is None if a whole file is
    one text, `chunk` is None unless the text is a piece.
    """

    text: str
    path: str
    line: int | None
    names: frozenset[str]
    fields: str
    chunk: Chunk | None = None

    @property
    def where(self) -> str:
        """The place of this record in messages: PATH, PATH:LINE, PATH[START:END] or PATH:LINE[START:END]."""
        line = "" if self.line is None else f":{self.line}"
        return f"{self.path}{line}" + (
            "" if self.chunk is None else f"[{self.chunk.start}:{self.chunk.end}]"
        )

    def place(self) -> dict[str, str | int]:
        """Return the place of this record for output: path, line if lines are records, chunk, start and end."""
        place: dict[str, str | int] = {"path": self.path}
        if self.line is not None:
            place["line"] = self.line
        if self.chunk is not None:
            number, start, end = self.chunk
            place |= {"chunk": number, "start": start, "end": end}
        return place


def open_object(fields: dict[str, str]) -> str:
    """Return fields as a JSON object without its closing brace."""
    return json.dumps(fields, ensure_ascii=False)[:-1]


def missing(
    where: str, text_field: str, names: Iterable[str], remedy: str | None = None
) -> InputError:
    """Create the error for a record without the field that holds the text."""
    return InputError(
        where,
        f"has no field {text_field!r}",
        got=list_some(names, in_order=True) or "no field",
        remedy=remedy or "Name the field that holds the text with --text-field.",
    )
