"""Read the rows of Parquet files, one row group at a time. Needs pyarrow."""

import json
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from lastword.cli.read.fields import Fields
from lastword.cli.read.kinds import Source
from lastword.cli.read.record import OnBad, Record, missing_field
from lastword.cli.read.urls import UrlFile, scheme_of
from lastword.errors import InputError, require_extra

_ROWS_AT_ONCE = 1024


def parquet_rows(source: Source, fields: Fields, on_bad: OnBad) -> Iterator[tuple[Record, int]]:
    """Yield a record for each row of a file or its part, with the size in bytes of the row groups read before its own.

    A record's line is the number of its row, from 1. Values that JSON cannot hold, such as dates, become strings;
    numbers that it cannot hold, such as NaN, become null.

    Args:
        source: the file; `start` and `stop` of its part count the bytes of row groups, as in `row_groups`.
        fields: as for `read.read`; OUTER.INNER is a field of a column of structures.
        on_bad: called for each row that has no text, or no id where it needs one.

    Raises:
        InputError: the file or one of its row groups cannot be read, or the file lacks a column of a condition.
    """
    file = _open(source)
    columns = file.schema_arrow.names
    for each in fields.where:
        if each.name not in columns and each.name.partition(".")[0] not in columns:
            raise missing_field(source.name, each.name, columns, "Change --where.")
    row, at = source.lines_before, 0
    for number in _groups_in(file, source):
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[number]):
                for found in batch.to_pylist():
                    row += 1
                    record = _record(source, row, found, fields, on_bad)
                    if record is not None:
                        yield record, at
        except InputError:
            raise  # raised by `on_bad` for a row, or by a URL's file
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
            reason = str(error).partition("\n")[0]
            where = f"{source.name}: row group {number}"
            raise InputError(where, f"cannot be read ({reason})") from error
        at += _size(file.metadata.row_group(number))


def _groups_in(file: Any, source: Source) -> Iterator[int]:
    """Yield the numbers of the row groups of a file or of its part, without adding up sizes before the part."""
    row = at = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if row < source.lines_before:
            row += group.num_rows
        elif source.part is None or at < source.part.stop - source.part.start:
            yield number
            at += _size(group)


def row_groups(source: Source) -> list[tuple[int, int]]:
    """Return (rows, bytes) of each row group of a Parquet file.

    Raises:
        InputError: the file cannot be read.
    """
    metadata = _open(source).metadata
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return [(group.num_rows, _size(group)) for group in groups]


def _open(source: Source) -> Any:
    with require_extra("pyarrow", "bulk", source.name):
        from pyarrow import parquet
    try:
        return parquet.ParquetFile(
            source.path if scheme_of(source.path) is None else UrlFile(source.path)
        )
    except InputError:
        raise  # the file of a URL names its own errors
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(source.name, f"cannot be read as Parquet ({reason})") from error


def _size(group: Any) -> int:
    """Return the compressed size of a row group; 0 if it has no rows, so that it may belong to either part."""
    sizes = (group.column(i).total_compressed_size for i in range(group.num_columns))
    return max(1, sum(sizes)) if group.num_rows else 0


def _record(
    source: Source, row: int, found: dict[str, object], fields: Fields, on_bad: OnBad
) -> Record | None:
    try:
        return fields.record(found, source, row, partial(_carried, found))
    except InputError as error:
        on_bad(error, source.name, row)
        return None


def _carried(found: dict[str, object]) -> str:
    try:
        text = json.dumps(found, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # a number is not finite
        text = json.dumps(_without_nan(found), ensure_ascii=False, default=str)
    return text[:-1]


def _without_nan(value: object) -> object:
    """Return a value with null in place of each number that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
