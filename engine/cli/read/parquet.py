"""Read the rows of Parquet files, one row group at a time. Needs pyarrow."""

import json
from collections.abc import Iterator
from typing import Any

from lastword.cli.read.kinds import Source
from lastword.cli.read.record import OnBad, Record
from lastword.cli.read.value import text_of
from lastword.errors import InputError, require_extra

_ROWS_AT_ONCE = 1024


def parquet_rows(source: Source, text_field: str, on_bad: OnBad) -> Iterator[tuple[Record, int]]:
    """Yield a record for each row of a file or of its part, and the bytes of the file that have been read before it.

    A record's line is the number of its row, from 1. Values that JSON does not have, such as dates, become strings.

    Args:
        source: the file; `start` and `stop` of its part count the bytes of row groups, as in `row_groups`.
        text_field: the column that holds the text, or OUTER.INNER for a field of a column of structures.
        on_bad: called for each row without a text.

    Raises:
        InputError: the file, or one of its row groups, cannot be read.
    """
    file = _open(source)
    row, at = 0, 0
    for number, (rows, size) in enumerate(_sizes(file)):
        if source.part is None or source.part.start <= at < source.part.stop:
            try:
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[number]):
                    for fields in batch.to_pylist():
                        row += 1
                        record = _record(source, row, fields, text_field, on_bad)
                        if record is not None:
                            yield record, at
            except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
                reason = str(error).partition("\n")[0]
                where = f"{source.name}: row group {number}"
                raise InputError(where, f"cannot be read ({reason})") from error
        else:
            row += rows
        at += size


def row_groups(source: Source) -> list[tuple[int, int]]:
    """Return (rows, bytes) of each row group of a Parquet file.

    Raises:
        InputError: the file cannot be read.
    """
    return _sizes(_open(source))


def _open(source: Source) -> Any:
    with require_extra("pyarrow", "bulk", source.name):
        from pyarrow import parquet
    try:
        return parquet.ParquetFile(source.path)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(source.name, f"cannot be read as Parquet ({reason})") from error


def _sizes(file: Any) -> list[tuple[int, int]]:
    groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
    return [
        (
            group.num_rows,
            max(1, sum(group.column(i).total_compressed_size for i in range(group.num_columns))),
        )
        for group in groups
    ]


def _record(
    source: Source, row: int, fields: dict[str, object], text_field: str, on_bad: OnBad
) -> Record | None:
    try:
        text = text_of(fields, text_field, f"{source.name}:{row}")
    except InputError as error:
        on_bad(error, source.name, row)
        return None
    whole = json.dumps(fields, ensure_ascii=False, default=str)
    return Record(text, source.name, row, frozenset(fields), whole[:-1])
