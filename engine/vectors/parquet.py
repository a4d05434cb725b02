"""Read stored vectors from Parquet files, one row group at a time. Needs pyarrow."""

import ctypes
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lastword.bulk.parquet import OWN_COLUMNS
from lastword.cli.read import PLACE, Record
from lastword.errors import InputError, require_extra
from lastword.vectors.made import Made
from lastword.vectors.stored_record import TextSource, own_id, place_of, text_in
from lastword.weights.files.dtypes import torch_dtype

_DAMAGED = "Embed the texts again."
_ID, _OTHER, *_ = OWN_COLUMNS


def open_parquet(path: str) -> Any:
    """Open a Parquet file, to be closed by the caller.

    Raises:
        MissingPackageError: pyarrow is not installed.
        InputError: the file is not Parquet, or is damaged.
    """
    with require_extra("pyarrow", "bulk", path):
        from pyarrow import parquet
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(path, f"cannot be read as Parquet ({reason})") from error


def parquet_metadata(file: Any) -> dict[str, object]:
    """Return the metadata that `embed` wrote to an open file; {} for any other file."""
    try:
        found = json.loads((file.schema_arrow.metadata or {}).get(b"lastword", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class ParquetVectors:
    """Vectors in a Parquet file.

    Args:
        path: the file.
        made: how the vectors were made.
        count: the number of vectors according to the job's record; None without a job.
        source: what makes the texts; None if they are not stored.
        columns: the types of the records' fields, as `column_types` gives them; None if they are not known.

    Raises:
        InputError: the file holds no such vectors.
    """

    has_fields = True

    def __init__(
        self,
        path: str,
        made: Made,
        count: int | None,
        source: TextSource,
        columns: Mapping[str, str] | None,
    ) -> None:
        self.name, self._made, self._source, self._columns = path, made, source, columns
        self.has_texts = source is not None
        # The file is opened again to be read: a job may have more files than a process may have open.
        with open_parquet(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = list(accumulate(sizes))
        self.count: int | None = metadata.num_rows
        if count is not None and count != self.count:
            got = f"{self.count:,} rows"
            raise InputError(path, "damaged", got=got, expected=f"{count:,}", remedy=_DAMAGED)
        self._field = self._find_column(schema)
        self._names = [name for name in schema.names if name != self._field]

    def _find_column(self, schema: Any) -> str:
        """Return the name of the column of vectors, the only one with lists of a fixed size."""
        import pyarrow as pa

        found = [each for each in schema if pa.types.is_fixed_size_list(each.type)]
        dtype = str(torch_dtype(self._made.layout.safetensors)).removeprefix("torch.")
        element = {"float16": "halffloat", "float32": "float"}.get(dtype, dtype)
        expected = f"one column of vectors with {self._made.width} elements, {element}"
        if len(found) != 1:
            got = f"{len(found)} columns of vectors"
            raise InputError(self.name, "damaged", got=got, expected=expected, remedy=_DAMAGED)
        kind = found[0].type
        if (kind.list_size, str(kind.value_type)) != (self._made.width, element):
            raise InputError(
                self.name, "damaged", got=str(kind), expected=expected, remedy=_DAMAGED
            )
        return str(found[0].name)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the stored codes [n, width], row group by row group."""
        dtype, width = torch_dtype(self._made.layout.safetensors), self._made.width
        with open_parquet(self.name) as file:
            for group in range(len(self._ends)):
                table = self._read(file, group, [f"{self._field}.list.element"])
                for chunk in table.column(0).chunks:
                    if chunk.null_count or chunk.values.null_count:
                        where = f"{self.name}: row group {group}"
                        raise InputError(where, "a vector is missing", remedy=_DAMAGED)
                    if len(chunk):
                        values = chunk.flatten()
                        yield _tensor(values, dtype).view(len(chunk), width)

    def records(self, rows: Sequence[int]) -> Iterator[Record]:
        """Yield the record of each of these rows, given in ascending order."""
        table, held = None, -1
        with open_parquet(self.name) as file:
            for row in rows:
                group = bisect_right(self._ends, row)
                if group != held:
                    table, held = self._read(file, group, self._names), group
                start = self._ends[group - 1] if group else 0
                yield self._record(table.slice(row - start, 1).to_pylist()[0], row)  # type: ignore[union-attr]

    def _read(self, file: Any, group: int, columns: list[str]) -> Any:
        try:
            return file.read_row_group(group, columns=columns, use_threads=False)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            where = f"{self.name}: row group {group}"
            raise InputError(where, f"cannot be read ({reason})", remedy=_DAMAGED) from error

    def _record(self, row: dict[str, Any], number: int) -> Record:
        where = f"{self.name}:{number + 1}"
        place = place_of(row, where)
        if place is None:
            raise InputError(where, "has no path", remedy=_DAMAGED)
        path, line, chunk = place
        fields = self._fields(row, where)
        text = text_in(fields, self._source, where)
        whole = json.dumps(fields, ensure_ascii=False, default=str)[:-1]
        found = Record(text, path, line, frozenset(fields), whole, chunk, has_text=self.has_texts)
        own = row.get(_ID) if self._columns is None or _ID in self._columns else None
        if own == found.where:  # the record has no field `id` of its own
            del fields[_ID]
            whole = json.dumps(fields, ensure_ascii=False, default=str)[:-1]
            return replace(found, names=frozenset(fields), fields=whole)
        return replace(found, id=own_id(own))

    def _fields(self, row: Mapping[str, Any], where: str) -> dict[str, object]:
        """Return the fields of the record that a row was made from; fields that are null are left out."""
        fields: dict[str, object] = {}
        for name, value in row.items():
            known = self._columns is None or name in self._columns
            if name in (*PLACE, *OWN_COLUMNS) and not (name == _ID and known):
                continue
            if value is not None:
                is_json = self._columns is not None and self._columns[name] == "json"
                fields[name] = json.loads(value) if is_json else value
        others = row.get(_OTHER)
        try:
            return fields if others is None else fields | json.loads(others)
        except (TypeError, ValueError) as error:
            raise InputError(where, f"its field {_OTHER!r} is damaged", remedy=_DAMAGED) from error


def _tensor(values: Any, dtype: torch.dtype) -> Tensor:
    """Return the values of an Arrow array without nulls, as a tensor that shares the array's memory."""
    buffer = values.buffers()[1]
    size = len(values) * dtype.itemsize
    data = (ctypes.c_ubyte * size).from_address(buffer.address + values.offset * dtype.itemsize)
    data.buffer = buffer  # type: ignore[attr-defined]  # keeps the memory alive
    return torch.frombuffer(data, dtype=dtype)
