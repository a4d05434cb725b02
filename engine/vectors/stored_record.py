"""Records of stored vectors, as `lastword search` prints them, made from the fields stored with each vector."""

from collections.abc import Mapping

from lastword.cli.read import PLACE, Chunk, Record, Template
from lastword.cli.read.record import open_object
from lastword.cli.read.value import text_of
from lastword.errors import InputError

Place = tuple[str, int | None, Chunk | None]
# What makes the text of a record: the name of a field, or a template; None if the texts are not stored.
TextSource = str | Template | None


def place_of(fields: Mapping[str, object], where: str) -> Place | None:
    """Return the path, line and chunk that the fields of `PLACE` hold, or None if there is no path.

    Args:
        fields: the fields, by name; those that are missing or None do not apply.
        where: the place of the record, for errors.

    Raises:
        InputError: a field has the wrong type, or a chunk has only some of its fields.
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


def without_fields(place: Place, text: str | None, own: str | int | None = None) -> Record:
    """Return the record of a vector that was stored without its record's fields.

    It has the vector's place, its id if there is one and, for a chunk, the chunk's text.
    """
    fields = {} if text is None else {"text": text}
    path, line, chunk = place
    return Record(
        text or "", path, line, frozenset(fields), open_object(fields), chunk, own, text is not None
    )


def text_in(fields: Mapping[str, object], source: TextSource, where: str) -> str:
    """Return the text of a record with these fields; "" if the texts are not stored.

    Raises:
        InputError: a field is missing or has the wrong type.
    """
    if isinstance(source, Template):
        return source.fill(fields, where)
    return "" if source is None else text_of(fields, source, where)


def own_id(value: object) -> str | int | None:
    """Return `value` if it can be shown as an id instead of a text's place: an int or a non-empty str; else None."""
    return value if type(value) is int or (isinstance(value, str) and value) else None
