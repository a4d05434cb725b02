"""Find the text in a record's fields."""

from collections.abc import Mapping

from lastword.cli.read.record import missing_field
from lastword.errors import InputError, lone_surrogate, with_article


def text_of(fields: Mapping[str, object], text_field: str, where: str) -> str:
    """Return the text of a record; a field `a.b` is the field of this name or, if there is none, field b of object a.

    Args:
        fields: the record's fields.
        text_field: the name of the field.
        where: the record's place, for errors.

    Raises:
        InputError: there is no such field, or it is not a string of Unicode text.
    """
    text = value_of(fields, text_field, where)
    if not isinstance(text, str):
        raise InputError(
            where, f"wrong field {text_field!r}", got=kind_of_value(text), expected="a string"
        )
    if not text.isascii() and (bad := lone_surrogate(text)) is not None:
        raise InputError(
            where,
            f"field {text_field!r} contains a lone surrogate",
            got=f"\\u{ord(text[bad]):04x}",
            expected="Unicode text",
            remedy="Remove it.",
        )
    return text


def find_value(fields: Mapping[str, object], name: str) -> object:
    """Return the value of a field; `a.b` as for `text_of`; None if there is no such field."""
    level, wanted = _go_down(fields, name)
    return level.get(wanted)


def _go_down(fields: Mapping[str, object], name: str) -> tuple[Mapping[str, object], str]:
    """Return the innermost object in which to look for a field, and the field's name in that object."""
    while name not in fields:
        head, dot, rest = name.partition(".")
        inner = fields.get(head)
        if not dot or not isinstance(inner, dict):
            break
        fields, name = inner, rest
    return fields, name


def value_of(
    fields: Mapping[str, object], text_field: str, where: str, remedy: str | None = None
) -> object:
    """Return the value of a field; arguments as for `text_of`; `remedy` is the advice if there is no such field.

    Raises:
        InputError: there is no such field.
    """
    level, wanted = _go_down(fields, text_field)
    if wanted in level:
        return level[wanted]
    head, dot, _ = wanted.partition(".")
    if not dot or head not in level:
        inside = text_field[: -len(wanted)].rstrip(".")
        place = f"{where}, in {inside!r}" if inside else where
        advice = remedy or _inner_hint(fields, text_field)
        raise missing_field(place, head, level.keys(), advice)
    got = f"{kind_of_value(level[head])} in {head!r}"
    raise InputError(where, f"has no field {text_field!r}", got=got, expected="an object")


def _inner_hint(fields: Mapping[str, object], text_field: str) -> str | None:
    """Return the remedy for a record that lacks the field, if an object in the record has the field; else None."""
    outer = (
        name for name, value in fields.items() if isinstance(value, dict) and text_field in value
    )
    name = next(outer, None)
    return (
        None
        if name is None
        else f"If {name}.{text_field} is meant, pass --text-field {name}.{text_field}."
    )


def kind_of_value(value: object) -> str:
    """Return the kind of a value in words: of JSON, or of another type that Parquet has, such as a date."""
    kinds = {
        dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"
    }  # fmt: skip
    return "null" if value is None else kinds.get(type(value)) or with_article(type(value).__name__)
