"""Read the records of each format: text, JSON lines, CSV and TSV (`table.py`), Parquet, and whole files."""

import os
import shlex
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any, TextIO

from lastword.cli.read.fields import Fields
from lastword.cli.read.kinds import STDIN, Source
from lastword.cli.read.lines import Line, Meter, lines_of, open_source, too_long
from lastword.cli.read.opening import KeptOpen
from lastword.cli.read.parquet import parquet_rows
from lastword.cli.read.record import OnBad, Record, open_object, stop
from lastword.cli.read.table import table
from lastword.errors import InputError

_JSON_SPACE = " \t\r\n"


def read(
    inputs: Sequence[Source],
    fields: Fields,
    delimiter: str | None = None,
    *,
    on_bad: OnBad = stop,
    meter: Meter | None = None,
    kept: KeptOpen | None = None,
) -> Generator[Record]:
    """Yield the records of all inputs in order.

    Args:
        inputs: the inputs.
        fields: which fields make the text and the id, and which records are wanted.
        delimiter: the character between the fields of a row; if None, the header of each file decides.
        on_bad: called for each record, and for each file, that cannot be read.
        meter: counts the bytes read, if given.
        kept: keeps a compressed file open from one part of it to the next, also from call to call, if given.

    Raises:
        InputError: an input or record cannot be read, and `on_bad` raises the error.
    """
    meter = meter or Meter(inputs)
    for source in inputs:
        try:
            if source.problem is not None:
                raise source.problem
            if source.format == "parquet":
                for record, done in parquet_rows(source, fields, on_bad):
                    meter.set(done)
                    yield record
                meter.end_file(source)
                continue
            with open_source(source, kept) as stream:
                meter.begin(stream)
                try:
                    yield from _records(stream, source, fields, delimiter, on_bad)
                finally:
                    meter.end()
        except InputError as error:
            on_bad(error, source.name, None)  # the other inputs may be readable


def _records(
    stream: TextIO, source: Source, fields: Fields, delimiter: str | None, on_bad: OnBad
) -> Iterator[Record]:
    """Yield the records of one input; arguments and errors as for `read`."""
    lines = lines_of(stream, source)
    if source.format == "txt":
        yield from _text_lines(lines, source, fields, on_bad)
    elif source.format == "jsonl":
        yield from _json_lines(lines, source, fields, on_bad)
    elif source.format in ("whole", "html"):
        yield from _whole_file(lines, source, fields, on_bad)
    else:
        yield from table(lines, source, fields, delimiter, on_bad)


def _text_lines(
    lines: Iterator[Line], source: Source, fields: Fields, on_bad: OnBad
) -> Iterator[Record]:
    (text_field,) = fields.text_names
    names = frozenset((text_field,))
    for number, (line, problem) in enumerate(lines, 1 + source.lines_before):
        if problem is not None:
            on_bad(problem, source.name, number)
            continue
        text = line.removesuffix("\n")
        if len(text) < len(line):
            text = text.removesuffix("\r")
        yield Record(text, source.name, number, names, open_object({text_field: text}))


def _whole_file(
    lines: Iterator[Line], source: Source, fields: Fields, on_bad: OnBad
) -> Iterator[Record]:
    """Yield the single record of a file that is one text."""
    try:
        text = _whole_text(lines, source)
    except InputError as error:
        on_bad(error, source.name, None)
        return
    if source.path == STDIN and not text:
        return  # nothing was piped in; without --files, this gives no record either
    (text_field,) = fields.text_names
    carried = open_object({text_field: text})
    yield Record(text, source.name, None, frozenset((text_field,)), carried)


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
    lines: Iterator[Line], source: Source, fields: Fields, on_bad: OnBad
) -> Iterator[Record]:
    for number, (line, problem) in enumerate(lines, 1 + source.lines_before):
        line = line.strip(_JSON_SPACE)
        if not line:
            continue
        where = f"{source.name}:{number}"
        try:
            if problem is not None:
                raise problem
            found = _object(line, where, source if number == 1 else None)
            record = fields.record(found, source, number, partial(_without_brace, line))
        except InputError as error:
            if number == 1 and line.startswith("[") and not line.endswith("]"):
                on_bad(_is_array(source), source.name, None)
                return
            on_bad(error, source.name, number)
            continue
        if record is not None:
            yield record


def refuse_array(source: Source) -> None:
    """Refuse a file that is one JSON array over several lines.

    Raises:
        InputError: the file is such an array, or cannot be read.
    """
    with open_source(source) as stream:
        first, _ = next(lines_of(stream, source), ("", None))
    if first.lstrip(_JSON_SPACE).startswith("[") and not first.rstrip(_JSON_SPACE).endswith("]"):
        raise _is_array(source)


def _object(line: str, where: str, source: Source | None) -> dict[str, Any]:
    """Parse a line; `source` is the file if this is its first line, which may be an array of all records."""
    from lastword.weights import parse_object

    if source is not None and line.startswith("[") and line.endswith("]"):
        error = _is_array(source)
        error.where = where
        raise error
    return parse_object(line, where, InputError)


def _is_array(source: Source) -> InputError:
    name = shlex.quote(source.path)
    return InputError(
        source.name,
        "holds a JSON array",
        expected="JSON lines: one object per line",
        remedy=f"Convert it: jq -c '.[]' {name} > {shlex.quote(f'lines-{os.path.basename(source.path)}')}.",
    )


def _without_brace(line: str) -> str:
    return line[:-1].rstrip(_JSON_SPACE)
