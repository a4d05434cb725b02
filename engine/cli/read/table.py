"""Read the records of CSV and TSV files."""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

from lastword.cli.read.fields import Fields, Template
from lastword.cli.read.kinds import Source
from lastword.cli.read.lines import MAX_RECORD, Line, too_long
from lastword.cli.read.record import OnBad, Record, open_object
from lastword.errors import InputError, list_some

# Delimiters to try if the usual one of the format does not fit the header.
_DELIMITERS = ",;\t|"
_Row = tuple[
    int, list[str], InputError | None
]  # the number of a row's first line, its fields, its error


def table(
    lines: Iterator[Line], source: Source, fields: Fields, delimiter: str | None, on_bad: OnBad
) -> Iterator[Record]:
    """Yield one record per row; `fields`, `delimiter` and `on_bad` are as for `read.read`.

    A blank line is an empty text if the table has a single column; otherwise it is skipped.
    """
    header, rows = _open(lines, source, fields, delimiter)
    for line, row, problem in rows:
        values = row if row or len(header) > 1 else [""]
        if problem is None and not values:
            continue
        if problem is None and len(values) != len(header):
            problem = InputError(
                f"{source.name}:{line}",
                "wrong number of fields",
                got=f"{len(values)}",
                expected=f"{len(header)}, as in the header",
            )
        if problem is not None:
            on_bad(problem, source.name, line)
            continue
        found = dict(zip(header, values, strict=True))
        try:
            record = fields.record(found, source, line, partial(open_object, found))
        except InputError as error:
            on_bad(error, source.name, line)
            continue
        if record is not None:
            yield record


def row_starts(
    lines: Iterator[Line], source: Source, fields: Fields, delimiter: str | None
) -> Iterator[int]:
    """Yield the number of the first line of each row after the header; blank lines and bad rows count as rows.

    Arguments and errors as for `table`.
    """
    _, rows = _open(lines, source, fields, delimiter)
    return (line for line, _, _ in rows)


def _open(
    lines: Iterator[Line], source: Source, fields: Fields, delimiter: str | None
) -> tuple[list[str], Iterator[_Row]]:
    """Return the header, and the rows after it."""
    start: list[Line] = []
    for each in lines:
        start.append(each)
        if each[0].strip("\r\n"):
            break
    by_header = _delimiter_of(start, source, fields)
    rows = _rows(chain(start, lines), source, delimiter or by_header)
    filled = (each for each in rows if each[1] or each[2] is not None)
    remedy = None
    if delimiter not in (None, by_header):
        remedy = "Leave out --delimiter: the character is then found for each file, by its header."
    return _header(next(filled, (1, [], None)), source, fields, remedy), rows


def _delimiter_of(start: Sequence[Line], source: Source, fields: Fields) -> str:
    """Return the delimiter: the first one with which the header has the text's columns, the usual one first."""
    usual = "\t" if source.format == "tsv" else ","
    line, problem = start[-1] if start else ("", None)
    if problem is not None:
        return usual  # reading the rows reports the problem
    for character in usual + _DELIMITERS:
        try:
            columns: list[str] = next(csv.reader([line], delimiter=character), [])
        except csv.Error:  # such as a field that is too long
            continue
        if {*columns, *map(str.strip, columns)}.issuperset(fields.text_names):
            return character
    return usual


def _header(
    first: _Row,
    source: Source,
    fields: Fields,
    remedy: str | None,
) -> list[str]:
    """Return the names of the columns.

    Args:
        first: the first row: its line number, its fields, and its error or None.
        source: the file.
        fields: which columns are used.
        remedy: the advice if the header has an error or lacks the text's column; None for the usual advice.

    Raises:
        InputError: the row is no header, or lacks a column; the file then has no usable row.
    """
    _, header, problem = first
    where = f"{source.name}:1"
    if problem is not None:
        problem.remedy = remedy or problem.remedy
        raise problem
    if not header:
        raise InputError(where, "has no header", expected="the names of the columns")
    names = frozenset(header)
    if len(names) < len(header):
        nameless = [str(number) for number, name in enumerate(header, 1) if not name]
        if len(nameless) > 1:
            what = f"columns {' and '.join(nameless[:2])} have no name"
            raise InputError(where, what, remedy="Name or remove all such columns.")
        twice = list_some({name for name in header if header.count(name) > 1})
        raise InputError(where, "two columns have the same name", got=twice, remedy="Rename one.")
    fields.check_columns(header, where, remedy or _spaces_hint(header, fields.text))
    return header


def _spaces_hint(header: Sequence[str], text_field: str | Template) -> str | None:
    """Return the remedy for a header with spaces around the name of the field, as in "id, text"."""
    name = next((each for each in header if each.strip() == text_field), None)
    return None if name is None else f"There are spaces in its name: pass --text-field {name!r}."


class _RowLines:
    """Gives the lines of a table to the csv module. Unlike a generator, it can go on after it has raised an error."""

    def __init__(self, lines: Iterator[Line], lines_before: int) -> None:
        self._lines, self._again = lines, deque[Line]()
        self.number = lines_before  # the number of the last line given
        self.broken = False  # whether the file cannot be read any further
        self.begin("")

    def begin(self, where: str) -> None:
        """Begin a row; errors name it by `where`. A row with line ends in quotes has several lines."""
        self._where, self._row, self._size = where, list[Line](), 0
        self.problem: InputError | None = None

    def begin_again(self) -> None:
        """Give all lines of this row except the first again, so that an unclosed quote costs one line only."""
        self._again.extendleft(reversed(self._row[1:]))
        self.number -= max(0, len(self._row) - 1)

    def __iter__(self) -> "_RowLines":
        return self

    def __next__(self) -> str:
        try:
            line, problem = self._again.popleft() if self._again else next(self._lines)
        except InputError:
            self.broken = True
            raise
        self._row.append((line, problem))
        self.number += 1
        self._size += len(line)
        endless = too_long(self._where, self._size)
        problem = problem or endless
        self.problem = self.problem or problem
        if problem is not None and endless is not None:
            raise problem
        return line


def _not_a_row(where: str, style: str, message: str) -> InputError:
    """Create the error for a row that the csv module refuses with the message `message`."""
    remedy = "A row ends with \\n or \\r\\n; quote a field with a line end or a quote in it."
    reason = message
    if "expected after" in message:  # the delimiter may be another character
        reason = "a field goes on after its closing quote"
        remedy = (
            "If another character separates the columns, name the text's column with --text-field, or pass "
            "--delimiter."
        )
    elif "unexpected end" in message:
        reason = "a quote is not closed"
    elif "new-line character" in message:
        reason = "a lone \\r in a field without quotes"
    return InputError(where, f"is not {style} ({reason})", remedy=remedy)


def _rows(lines: Iterator[Line], source: Source, delimiter: str) -> Iterator[_Row]:
    """Yield each row as the number of its first line, its fields, and its error or None.

    A blank line is a row without fields. After a row with an error, the next row begins at the second line of that row.
    """
    csv.field_size_limit(MAX_RECORD)
    row_lines = _RowLines(lines, source.lines_before)
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
            if row_lines.broken:
                raise
            problem = error
        except csv.Error as error:
            problem = _not_a_row(where, source.format, str(error))
        if problem is not None:
            row_lines.begin_again()
        yield line, row, row_lines.problem or problem
