"""Records of stored vectors, as `lastword search` prints them, made from what the files say of each vector."""

import json
from collections.abc import Mapping

from lastword.cli.read import PLACE, Chunk, Record
from lastword.errors import InputError

Place = tuple[str, int | None, Chunk | None]


def place_of(fields: Mapping[str, object], where: str) -> Place | None:
    """Return the path, line and chunk that the fields of `PLACE` hold, or None if there is no path.

    Args:
        fields: the fields, by name; those that are missing or None do not apply.
        where: the place of the record, for errors.

    Raises:
        InputError: a field has another type.
    """
    path, *numbers = (fields.get(name) for name in PLACE)
    if path is None:
        return None
    chunk = numbers[1:]
    if (
        not isinstance(path, str)
        or not all(each is None or type(each) is int for each in numbers)
        or len({each is None for each in chunk}) > 1
    ):
        raise InputError(where, f"its place is damaged ({', '.join(PLACE)})")
    line, number, start, end = (each if isinstance(each, int) else None for each in numbers)
    if number is None or start is None or end is None:
        return path, line, None
    return path, line, Chunk(number, start, end)


def without_text(place: Place, text: str | None) -> Record:
    """Return the record of a vector that is stored with its place only and, if it is of a chunk, the chunk's text."""
    fields = json.dumps({"text": text or ""}, ensure_ascii=False)[:-1]
    path, line, chunk = place
    return Record(
        text or "", path, line, frozenset(("text",)), fields, chunk, has_text=text is not None
    )


def own_id(value: object) -> str | int | None:
    """Return an id that can be shown in place of where a text is: a whole number or a text; else None."""
    return value if type(value) is int or (isinstance(value, str) and value) else None
