"""Read the records of each format: text, JSON lines, CSV and TSV (see `table.py`), and whole files."""

from collections.abc import Iterator, Sequence
from typing import TextIO

from lastword.cli.read.kinds import STDIN, Source
from lastword.cli.read.lines import Line, Meter, lines_of, open_source, too_long
from lastword.cli.read.record import OnBad, Record, missing_field, open_object, stop
from lastword.cli.read.table import table
from lastword.errors import InputError, lone_surrogate

_JSON_SPACE = " \t\r\n"


def read(
    inputs: Sequence[Source],
    text_field: str,
    delimiter: str | None = None,
    *,
    on_bad: OnBad = stop,
    meter: Meter | None = None,
) -> Iterator[Record]:
    """Yield the records of all inputs in order.

    Args:
        inputs: the inputs.
        text_field: the field or column that holds the text. In JSON lines, `a.b` means the field named "a.b" or, if
            there is none, the field b of the object a.
        delimiter: the character between the fields of a row; if None, the header of each file decides.
        on_bad: called for each record, and for each file, that cannot be read.
        meter: counts the bytes read, if given.

    Raises:
        InputError: an input or record cannot be read, and `on_bad` raises the error.
    """
    meter = meter or Meter(inputs)
    for source in inputs:
        try:
            if source.problem is not None:
                raise source.problem
            with open_source(source) as stream:
                meter.begin(stream)
                try:
                    yield from _records(stream, source, text_field, delimiter, on_bad)
                finally:
                    meter.end()
        except InputError as error:
            on_bad(error, source.name, None)  # this input cannot be read, but others may


def _records(
    stream: TextIO, source: Source, text_field: str, delimiter: str | None, on_bad: OnBad
) -> Iterator[Record]:
    """Yield the records of one input; arguments and errors as for `read`."""
    lines = lines_of(stream, source)
    if source.format == "txt":
        yield from _text_lines(lines, source, text_field, on_bad)
    elif source.format == "jsonl":
        yield from _json_lines(lines, source, text_field, on_bad)
    elif source.format in ("whole", "html"):
        yield from _whole_file(lines, source, text_field, on_bad)
    else:
        yield from table(lines, source, text_field, delimiter, on_bad)


def _text_lines(
    lines: Iterator[Line], source: Source, text_field: str, on_bad: OnBad
) -> Iterator[Record]:
    names = frozenset((text_field,))
    for number, (line, problem) in enumerate(lines, 1):
        if problem is not None:
            on_bad(problem, source.name, number)
            continue
        text = line.removesuffix("\n")
        if len(text) < len(line):
            text = text.removesuffix("\r")
        yield Record(text, source.name, number, names, open_object({text_field: text}))


def _whole_file(
    lines: Iterator[Line], source: Source, text_field: str, on_bad: OnBad
) -> Iterator[Record]:
    """Yield the single record of a file that is one text."""
    try:
        text = _whole_text(lines, source)
    except InputError as error:
        on_bad(error, source.name, None)
        return
    if source.path == STDIN and not text:
        return  # nothing was piped in; without --files, this gives no record either
    fields = open_object({text_field: text})
    yield Record(text, source.name, None, frozenset((text_field,)), fields)


def _whole_text(lines: Iterator[Line], source: Source) -> str:
    found, size = [], 0
    for line, problem in lines:
        if problem is not None:
            raise problem
        size += len(line)
        if (problem := too_long(source.name, size)) is not None:
            raise problem
        found.append(line)
    text = "".join(found)
    if source.format != "html":
        return text
    from lastword.cli.documents.html_text import html_text

    return html_text(text)


def _json_lines(
    lines: Iterator[Line], source: Source, text_field: str, on_bad: OnBad
) -> Iterator[Record]:
    from lastword.weights import parse_object

    for number, (line, problem) in enumerate(lines, 1):
        line = line.strip(_JSON_SPACE)
        if not line:
            continue
        where = f"{source.name}:{number}"
        try:
            if problem is not None:
                raise problem
            fields = parse_object(line, where, InputError)
            text = _text_of(fields, text_field, where)
        except InputError as error:
            on_bad(error, source.name, number)
            continue
        carried = line[:-1].rstrip(_JSON_SPACE)
        yield Record(text, source.name, number, frozenset(fields), carried)


def _text_of(fields: dict[str, object], text_field: str, where: str) -> str:
    text = _value_of(fields, text_field, where)
    if not isinstance(text, str):
        raise InputError(where, f"wrong field {text_field!r}", got=_kind(text), expected="a string")
    if not text.isascii() and (bad := lone_surrogate(text)) is not None:
        raise InputError(
            where,
            f"field {text_field!r} contains a lone surrogate",
            got=f"\\u{ord(text[bad]):04x}",
            expected="Unicode text",
            remedy="Remove it.",
        )
    return text


def _value_of(fields: dict[str, object], text_field: str, where: str) -> object:
    """Return the value of a field; `a.b` is the field of this name or, if there is none, field b of the object a."""
    level, wanted = fields, text_field
    while wanted not in level:
        head, dot, rest = wanted.partition(".")
        if not dot or head not in level:
            inside = text_field[: -len(wanted)].rstrip(".")
            place = f"{where}, in {inside!r}" if inside else where
            raise missing_field(place, head, level.keys(), _inner_hint(fields, text_field))
        inner = level[head]
        if not isinstance(inner, dict):
            what = f"has no field {text_field!r}"
            raise InputError(where, what, got=f"{_kind(inner)} in {head!r}", expected="an object")
        level, wanted = inner, rest
    return level[wanted]


def _inner_hint(fields: dict[str, object], text_field: str) -> str | None:
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


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
