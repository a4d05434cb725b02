r"""Read records from text, JSON lines and CSV files, or whole files, one at a time, each with its place.

Input is strict UTF-8 (a byte order mark at the start is skipped). A line ends with \n or \r\n; any other character,
such as a lone \r, belongs to the line. One record is held in memory, and it has at most `MAX_RECORD` characters.
This module knows nothing about models or vectors; `stream.py` is the next step in the flow.
"""

import csv
import io
import json
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TextIO

from lastword.errors import InputError, list_some, lone_surrogate

FORMATS = ("txt", "jsonl", "csv", "tsv")
STDIN = "-"
# The fields that tell the place of a text; JSON lines have them with --files and --chunk.
PLACE = ("path", "line", "chunk", "start", "end")
_BYTE_ORDER_MARK = "\ufeff"
_JSON_SPACE = " \t\r\n"
# Characters. Stops at a device without an end, or at an unclosed quote in a large file, before memory runs out; a JSON
# object of this length takes up to 1 GB.
MAX_RECORD = 1 << 25

_JSON_LINES = "Convert it to JSON lines (.jsonl), one record per line."
_AS_TEXT = "Convert it to text (.txt) or JSON lines (.jsonl) first."
_UNPACKED = "Unpack it first, or use a pipe: zcat FILE | lastword embed - --input-format {inner}."
_REFUSED = {
    "json": "Convert it to JSON lines: jq -c '.[]' FILE > FILE.jsonl. If it is already JSON lines, "
    "pass --input-format jsonl.",
    **dict.fromkeys(("parquet", "arrow", "feather", "orc", "avro", "xlsx", "xls"), _JSON_LINES),
    **dict.fromkeys(("npy", "npz", "safetensors", "bin", "pt", "pkl", "db", "sqlite"), _AS_TEXT),
    **dict.fromkeys(("pdf", "doc", "docx", "odt", "pptx", "epub"), _AS_TEXT),
    **dict.fromkeys(
        ("html", "htm"), "Pass --files to read each file as one text, without its tags."
    ),
    **dict.fromkeys(("gz", "bz2", "xz", "zst", "zip", "tar", "tgz", "7z"), _UNPACKED),
}
_CONVERTED = "Convert it: iconv -f {name} -t UTF-8 FILE > FILE.txt."
# What a file that is not UTF-8 begins with, what it then is, and the remedy.
_KINDS = (
    (b"\x1f\x8b", "a gzip file", _UNPACKED),
    (b"PK\x03\x04", "a zip file", _UNPACKED),
    (b"BZh", "a bzip2 file", _UNPACKED),
    (b"\xfd7zXZ", "an xz file", _UNPACKED),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACKED),
    (b"\xff\xfe\x00\x00", "UTF-32 text", _CONVERTED.format(name="UTF-32")),
    (b"\xff\xfe", "UTF-16 text", _CONVERTED.format(name="UTF-16")),
    (b"\xfe\xff", "UTF-16 text", _CONVERTED.format(name="UTF-16")),
    (b"PAR1", "a Parquet file", _JSON_LINES),
    (b"%PDF-", "a PDF file", _AS_TEXT),
    (b"\x89PNG", "an image", _AS_TEXT),
    (b"\xff\xd8\xff", "an image", _AS_TEXT),
)


@dataclass(frozen=True, slots=True)
class Source:
    """An input file that exists, and its format: one of `FORMATS`, or `whole` or `html` for a file that is one text."""

    path: str
    format: str

    @property
    def name(self) -> str:
        """The name of this input in messages."""
        return "stdin" if self.path == STDIN else self.path


# Called with the error of a record, its file and its line; where it returns, the record is left out.
Bad = Callable[[InputError, str, int | None], None]
# A line with its line end, and what is wrong with it.
Line = tuple[str, InputError | None]


def stop(error: InputError, file: str, line: int | None) -> None:  # noqa: ARG001  a Bad
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

    `fields` is the record's JSON object as it was written, without the closing brace. It is copied to
    the output unparsed, so numbers keep all their digits. A whole file has no line; only a piece has a chunk.
    """

    text: str
    file: str
    line: int | None
    names: frozenset[str]
    fields: str
    chunk: Chunk | None = None

    @property
    def where(self) -> str:
        """The place of this record in messages: FILE, FILE:LINE, FILE[START:END] or FILE:LINE[START:END]."""
        line = "" if self.line is None else f":{self.line}"
        return f"{self.file}{line}" + (
            "" if self.chunk is None else f"[{self.chunk.start}:{self.chunk.end}]"
        )

    def place(self) -> dict[str, str | int]:
        """Return the place of this record for output: path, line if lines are records, chunk, start and end."""
        place: dict[str, str | int] = {"path": self.file}
        if self.line is not None:
            place["line"] = self.line
        if self.chunk is not None:
            number, start, end = self.chunk
            place |= {"chunk": number, "start": start, "end": end}
        return place


def sources(files: Sequence[str], input_format: str | None, *, whole: bool = False) -> list[Source]:
    """Check every input before any work starts; without files the input is stdin.

    Args:
        files: paths of files, or - for stdin.
        input_format: the format of every file; None goes by the extension.
        whole: whether each file is one text.

    Raises:
        InputError: there is no input, stdin is given twice, or a file cannot be read or has an unsupported format.
        OSError: a file is missing.
    """
    paths = list(files) or [STDIN]
    if not files and sys.stdin is not None and sys.stdin.isatty():
        raise InputError("FILES", "no input", remedy="Name a file, or - for stdin.")
    if paths.count(STDIN) > 1:
        raise InputError("FILES", "- is given twice", remedy="stdin can be read only once.")
    return [Source(path, _format(path, input_format, whole=whole)) for path in paths]


def _format(path: str, input_format: str | None, *, whole: bool) -> str:
    if path == STDIN:
        return input_format or ("whole" if whole else "txt")
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise InputError(path, "is a folder", expected="a file", remedy="Name the files in it.")
    if not os.access(path, os.R_OK):
        raise InputError(path, "cannot be read (permission denied)")
    if input_format is not None:
        return input_format
    root, ending = split_ending(path)
    if whole and ending in ("html", "htm"):
        return "html"
    if ending in _REFUSED and not (whole and ending == "json"):
        inner = _format_of(split_ending(root)[1])  # "docs.jsonl.gz" holds jsonl
        remedy = _REFUSED[ending].format(inner=inner)
        raise InputError(path, f"unsupported input format .{ending}", remedy=remedy)
    return "whole" if whole else _format_of(ending)


def split_ending(path: str) -> tuple[str, str]:
    """Split a file name into its root and its extension, which is in lower case and without the dot."""
    root, dotted = os.path.splitext(path)
    return root, dotted.lower().removeprefix(".")


def _format_of(ending: str) -> str:
    ending = "jsonl" if ending == "ndjson" else ending
    return ending if ending in FORMATS else "txt"


class Meter:
    """Tells how many bytes of the inputs have been read, and how many there are."""

    def __init__(self, inputs: Sequence[Source]) -> None:
        sizes = [_size(source) for source in inputs]
        known = [size for size in sizes if size is not None]
        self.total = sum(known) if len(known) == len(sizes) else None  # None: not all are files
        self._before = 0
        self._stream: BinaryIO | None = None if self.total is None else io.BytesIO()

    def begin(self, stream: TextIO) -> None:
        """Note that an input is opened."""
        if self._stream is not None:
            self._stream = stream.buffer

    def end(self) -> None:
        """Note that an input is read to its end."""
        if self._stream is not None:
            self._before += self._stream.tell()
            self._stream = io.BytesIO()

    def position(self) -> int:
        """Return how many bytes have been read; 0 where `total` is None."""
        return 0 if self._stream is None else self._before + self._stream.tell()


def _size(source: Source) -> int | None:
    """Return the size of a regular file, None for any other input."""
    try:
        status = os.stat(sys.stdin.fileno() if source.path == STDIN else source.path)
    except (AttributeError, OSError, ValueError):  # reported where it is opened
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def read(
    inputs: Sequence[Source],
    text_field: str,
    delimiter: str | None = None,
    *,
    bad: Bad = stop,
    meter: Meter | None = None,
) -> Iterator[Record]:
    """Yield the records of all inputs in order.

    Args:
        inputs: the inputs.
        text_field: the field or column that holds the text; in JSON lines, `a.b` is also field b of the object a.
        delimiter: the character between the fields of a row; None means a comma, or a tab for tsv.
        bad: called for each record that cannot be read.
        meter: told which input is read.

    Raises:
        InputError: an input cannot be read or is not as its format demands.
    """
    meter = meter or Meter(inputs)
    for source in inputs:
        with _open(source) as stream:
            meter.begin(stream)
            try:
                yield from _records(stream, source, text_field, delimiter, bad)
            except InputError as error:
                if len(inputs) == 1:
                    raise
                bad(error, source.name, None)  # this file cannot be read, but others may
            meter.end()


def _records(
    stream: TextIO, source: Source, text_field: str, delimiter: str | None, bad: Bad
) -> Iterator[Record]:
    """Yield the records of one input; arguments and errors as for `read`."""
    lines = _lines(stream, source)
    if source.format == "txt":
        yield from _text_lines(lines, source, text_field, bad)
    elif source.format == "jsonl":
        yield from _json_lines(lines, source, text_field, bad)
    elif source.format in ("whole", "html"):
        yield from _whole_file(lines, source, text_field, bad)
    else:
        between = delimiter or ("\t" if source.format == "tsv" else ",")
        yield from _table(lines, source, text_field, between, bad)


def _open(source: Source) -> TextIO:
    """Open an input for reading lines.

    A strict decoder works on blocks and cannot tell the line of an invalid byte. `surrogateescape` turns
    an invalid byte, and nothing else, into a lone surrogate; `_lines` then finds it in its line.
    """
    if source.path == STDIN and sys.stdin is None:
        raise InputError("stdin", "is closed", remedy="Name a file.")
    return open(
        sys.stdin.fileno() if source.path == STDIN else source.path,
        encoding="utf-8",
        errors="surrogateescape",
        newline="\n",
        closefd=source.path != STDIN,
    )


def _lines(stream: TextIO, source: Source) -> Iterator[Line]:
    """Yield lines with their errors: one that is not UTF-8, or one that is too long, which comes empty.

    Raises:
        InputError: the file cannot be read, or is of a known kind that is not UTF-8 text.
    """
    number, first = 0, ""
    while line := _next_line(stream, source):
        number += 1
        problem = None
        if len(line) > MAX_RECORD:
            problem = _too_long(f"{source.name}:{number}")
        if number == 1:
            first = line[:8]
            line = line.removeprefix(_BYTE_ORDER_MARK)
            if problem is None:
                _refuse_utf16(line, source)
            if not line:
                return
        if problem is None and not line.isascii() and (place := lone_surrogate(line)) is not None:
            problem = _not_utf8(f"{source.name}:{number}", line[place], first, source)
            if _kind_of(first) is not None:
                raise problem  # the other lines are no text either
        yield line, problem
        while problem is not None and len(line) > MAX_RECORD:  # the rest of the line
            line = _next_line(stream, source)


def _kind_of(first: str) -> tuple[str, str] | None:
    """Return the kind of a file that begins with `first`, and the remedy; None if it may be text."""
    beginning = first.encode(errors="surrogateescape")
    return next(
        ((kind, known) for start, kind, known in _KINDS if beginning.startswith(start)), None
    )


def _not_utf8(where: str, bad: str, first: str, source: Source) -> InputError:
    """Create the error for an invalid byte; the file's beginning tells what it is instead, if that is known."""
    got, remedy = f"byte 0x{ord(bad) - 0xDC00:02x}", "Convert the file to UTF-8."
    if (found := _kind_of(first)) is not None:
        kind, known = found
        got, remedy = f"{kind} ({got})", known.format(inner=source.format)
    return InputError(where, "is not UTF-8", got=got, remedy=remedy)


def _refuse_utf16(line: str, source: Source) -> None:
    """Refuse UTF-16 without a byte order mark: of English text, every other byte is zero, which is valid UTF-8."""
    if len(line) > 3 and "\0" in line and {"\0"} in (set(line[::2]), set(line[1::2])):
        remedy = _CONVERTED.format(name="UTF-16LE")
        raise InputError(f"{source.name}:1", "is not UTF-8", got="UTF-16 text", remedy=remedy)


def _next_line(stream: TextIO, source: Source) -> str:
    try:
        return stream.readline(MAX_RECORD + 1)
    except OSError as error:
        raise InputError(source.name, f"cannot be read ({error.strerror or error})") from error


def _too_long(where: str) -> InputError:
    return InputError(
        where,
        "is too long for one record",
        expected=f"at most {MAX_RECORD:,} characters",
        remedy="Check the file's format, or split the text.",
    )


def _text_lines(
    lines: Iterator[Line], source: Source, text_field: str, bad: Bad
) -> Iterator[Record]:
    names = frozenset((text_field,))
    for number, (line, problem) in enumerate(lines, 1):
        if problem is not None:
            bad(problem, source.name, number)
            continue
        text = line.removesuffix("\n")
        if len(text) < len(line):
            text = text.removesuffix("\r")
        yield Record(text, source.name, number, names, _open_object({text_field: text}))


def _whole_file(
    lines: Iterator[Line], source: Source, text_field: str, bad: Bad
) -> Iterator[Record]:
    """Yield the record of a file that is one text."""
    try:
        text = _whole_text(lines, source)
    except InputError as error:
        bad(error, source.name, None)
        return
    fields = _open_object({text_field: text})
    yield Record(text, source.name, None, frozenset((text_field,)), fields)


def _whole_text(lines: Iterator[Line], source: Source) -> str:
    found, size = [], 0
    for line, problem in lines:
        if problem is not None:
            raise problem
        size += len(line)
        if size > MAX_RECORD:
            raise _too_long(source.name)
        found.append(line)
    text = "".join(found)
    if source.format != "html":
        return text
    from lastword.cli.documents.html_text import html_text

    return html_text(text)


def _json_lines(
    lines: Iterator[Line], source: Source, text_field: str, bad: Bad
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
            bad(error, source.name, number)
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
    """Return the value of a field; `a.b` is the field of that very name or else field b of the object a."""
    level, wanted = fields, text_field
    while wanted not in level:
        head, dot, rest = wanted.partition(".")
        if not dot or head not in level:
            inside = text_field[: -len(wanted)].rstrip(".")
            raise _missing(f"{where}, in {inside!r}" if inside else where, head, level.keys())
        inner = level[head]
        if not isinstance(inner, dict):
            what = f"has no field {text_field!r}"
            raise InputError(where, what, got=f"{_kind(inner)} in {head!r}", expected="an object")
        level, wanted = inner, rest
    return level[wanted]


def _missing(
    where: str, text_field: str, names: Iterable[str], remedy: str | None = None
) -> InputError:
    return InputError(
        where,
        f"has no field {text_field!r}",
        got=list_some(names) or "no field",
        remedy=remedy or "Name the field that holds the text with --text-field.",
    )


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _table(
    lines: Iterator[Line], source: Source, text_field: str, delimiter: str, bad: Bad
) -> Iterator[Record]:
    """Yield one record per row; blank lines are skipped, as in the csv module."""
    rows = _rows(lines, source, delimiter)
    header = _header(next(rows, (1, [], None)), source, text_field)
    names = frozenset(header)
    for line, row, problem in rows:
        if problem is None and len(row) != len(header):
            problem = InputError(
                f"{source.name}:{line}",
                "wrong number of fields",
                got=f"{len(row)}",
                expected=f"{len(header)}, as in the header",
            )
        if problem is not None:
            bad(problem, source.name, line)
            continue
        fields = dict(zip(header, row, strict=True))
        yield Record(fields[text_field], source.name, line, names, _open_object(fields))


def _header(
    first: tuple[int, list[str], InputError | None], source: Source, text_field: str
) -> list[str]:
    """Return the names of the columns; an error of theirs concerns every row."""
    _, header, problem = first
    where = f"{source.name}:1"
    if problem is not None:
        raise problem
    if not header:
        raise InputError(where, "has no header", expected="the names of the columns")
    names = frozenset(header)
    if len(names) < len(header):
        twice = list_some({name for name in header if header.count(name) > 1})
        raise InputError(where, "two columns have the same name", got=twice, remedy="Rename one.")
    if text_field not in names:
        raise _missing(where, text_field, names, _delimiter_hint(header, text_field))
    return header


def _delimiter_hint(header: Sequence[str], text_field: str) -> str | None:
    """Return the remedy for a header that looks as if its columns were separated by another character."""
    for character in ";\t|,":
        columns = [name.strip(' "') for column in header for name in column.split(character)]
        if len(columns) > len(header) and (len(header) == 1 or text_field in columns):
            shown = "tab" if character == "\t" else f"'{character}'"
            return f"If this separates its columns, pass --delimiter {shown}."
    return None


class _RowLines:
    """Gives the lines of a table to the csv module; unlike a generator it goes on after it has raised an error."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines, self._again = lines, deque[Line]()
        self.number = 0  # of the last line
        self.begin("")

    def begin(self, where: str) -> None:
        """Note where the next row begins."""
        self._where, self._row, self._size = where, list[Line](), 0  # a row may have many lines
        self.problem: InputError | None = None

    def begin_again(self) -> None:
        """Let the next row begin with the second line of this one: a quote that is not closed costs one line only."""
        self._again.extendleft(reversed(self._row[1:]))
        self.number -= max(0, len(self._row) - 1)

    def __iter__(self) -> "_RowLines":
        return self

    def __next__(self) -> str:
        line, problem = self._again.popleft() if self._again else next(self._lines)
        self._row.append((line, problem))
        self.number += 1
        self._size += len(line)
        if self._size > MAX_RECORD:
            problem = problem or _too_long(self._where)
        self.problem = self.problem or problem
        if problem is not None and self._size > MAX_RECORD:
            raise problem
        return line


def _rows(
    lines: Iterator[Line], source: Source, delimiter: str
) -> Iterator[tuple[int, list[str], InputError | None]]:
    """Yield each row with its first line number and its error; after an error, the next line begins a row."""
    csv.field_size_limit(MAX_RECORD)
    row_lines = _RowLines(lines)
    reader = csv.reader(row_lines, delimiter=delimiter, strict=True)
    while True:
        line = row_lines.number + 1
        where, row, problem = f"{source.name}:{line}", list[str](), None
        row_lines.begin(where)
        try:
            row = next(reader)
        except StopIteration:
            return
        except InputError as error:
            problem = error
        except csv.Error as error:
            reason = str(error).partition(" - ")[0]  # without advice for programmers
            remedy = (
                "A row ends with \\n or \\r\\n; quote a field with a line end or a quote in it."
            )
            if "expected after" in reason:  # a quoted field goes on: perhaps with another delimiter
                remedy = "If another character separates the columns, name it with --delimiter."
            problem = InputError(where, f"is not {source.format} ({reason})", remedy=remedy)
        if problem is not None:
            row_lines.begin_again()
        problem = row_lines.problem or problem
        if row or problem is not None:
            yield line, row, problem


def _open_object(fields: dict[str, str]) -> str:
    return json.dumps(fields, ensure_ascii=False)[:-1]


def as_json(value: object) -> str:
    """Return a value as JSON; the bytes of a file name that are not UTF-8 are escaped, as `os.fsencode` takes them."""
    text = json.dumps(value, ensure_ascii=False)
    return text if lone_surrogate(text) is None else json.dumps(value)
