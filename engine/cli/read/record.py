"""A record: a text with its place in the input and its other fields; and the handling of a record with an error."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lastword.errors import InputError, list_some

# The names of the fields that tell where a text comes from.
PLACE = ("path", "line", "chunk", "start", "end")
# A function that handles a record that cannot be used. Its arguments: the error, the path of the file, and the line
# (None for a whole file). It either raises the error, or returns: then the record is left out.
OnBad = Callable[[InputError, str, int | None], None]


def stop(error: InputError, path: str, line: int | None) -> None:  # noqa: ARG001  an OnBad
    """Raise the error: the default way to handle a record that cannot be used."""
    raise error


class Chunk(NamedTuple):
    """The place of a chunk in its text: its number, from 0, and the positions of `text[start:end]` in characters."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Record:
    """A text with its place in the input and the other fields of its record.

    Args:
        text: the text to embed.
        path: the file, as a name for output (`Source.name`).
        line: the number of the line, from 1; None if a whole file is the text.
        names: the names of the record's fields.
        fields: the record as a JSON object without its closing brace. For JSON lines, this is a copy of the input, so
            numbers keep all their digits.
        chunk: if `text` is a chunk of a longer text, its place there; else None.
        id: what to call the record: the value of the field that was chosen as id, or the id that is stored with a
            vector; None to call it by its place.
        has_text: whether `text` is known; stored vectors may have places only.
    """

    text: str
    path: str
    line: int | None
    names: frozenset[str]
    fields: str
    chunk: Chunk | None = None
    id: str | int | float | None = None
    has_text: bool = True

    @property
    def has_others(self) -> bool:
        """Whether the record has fields other than its text."""
        values = list(json.loads(f"{self.fields}}}").values())
        return values != ([self.text] if self.has_text else [])

    @property
    def where(self) -> str:
        """The place of this record in messages: PATH, PATH:LINE, PATH[START:END] or PATH:LINE[START:END]."""
        line = "" if self.line is None else f":{self.line}"
        return f"{self.path}{line}" + (
            "" if self.chunk is None else f"[{self.chunk.start}:{self.chunk.end}]"
        )

    def place(self) -> dict[str, str | int]:
        """Return this record's fields named in `PLACE`: path; line, unless None; chunk, start and end of a chunk."""
        place: dict[str, str | int] = {"path": self.path}
        if self.line is not None:
            place["line"] = self.line
        if self.chunk is not None:
            number, start, end = self.chunk
            place |= {"chunk": number, "start": start, "end": end}
        return place


def open_object(fields: dict[str, str]) -> str:
    """Return the fields as a JSON object without its closing brace, for `Record.fields`."""
    return json.dumps(fields, ensure_ascii=False)[:-1]


def more_fields(fields: str) -> str:
    """Return an object without its closing brace, ready for another field: with a comma unless it has no fields."""
    return fields if fields == "{" else f"{fields}, "


def missing_field(
    where: str, text_field: str, names: Iterable[str], remedy: str | None = None
) -> InputError:
    """Create the error for a record or table whose fields, `names`, lack the field `text_field`."""
    return InputError(
        where,
        f"has no field {text_field!r}",
        got=list_some(names, in_order=True) or "no fields",
        remedy=remedy or "Name the field that holds the text with --text-field.",
    )
