"""Write vectors and the fields of their records to a Parquet file, one row group per group of records.

Columns: `id`, the record's own fields, `other` (fields without a column of their own), its place, `embedding` (a list
of fixed size), `tokens` (the number of tokens of the text with its prompt) and `truncated` (whether the text was cut).
Needs pyarrow.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from lastword.cli.console import attempt
from lastword.cli.read import PLACE, OnBad, Record
from lastword.errors import InputError, lone_surrogate, require_extra

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

# Precisions whose element type has another name.
_ELEMENTS = {"binary": "int8", "ubinary": "uint8"}
# The column for fields that have no column of their own, or whose type differs from their column's.
OTHER = "other"
# The column that every row has: the record's id or, if it has none, its place.
_ID = "id"
# The columns, besides those of the place and the vector, that every file has.
OWN_COLUMNS = (_ID, OTHER, "tokens", "truncated")


class ParquetFile:
    """Writes a Parquet file.

    Args:
        stream: the output.
        name: the name of `stream` in messages.
        columns: the types of the records' fields, by name, as `column_types` gives them.
        field: the name of the column of vectors.
        precision: the precision of the vectors.
        width: the number of elements of a vector.
        metadata: the metadata of the file.
        id_field: the field that holds the ids of all records; None for the field `id` where there is one.
    """

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        columns: Mapping[str, str],
        field: str,
        precision: str,
        width: int,
        metadata: Mapping[str, str],
        id_field: str | None = None,
    ) -> None:
        with require_extra("pyarrow", "bulk", "Parquet output"):
            import pyarrow as pa
            from pyarrow import parquet

        self._pa, self._name, self._columns, self._vector_field = pa, name, columns, field
        self._id_field = id_field
        self._element = getattr(pa, _ELEMENTS.get(precision, precision))()
        place = {
            "path": pa.string(),
            **dict.fromkeys(("line", "chunk", "start", "end"), pa.int64()),
        }
        fields = [] if _ID in columns else [pa.field(_ID, pa.string(), nullable=False)]
        fields += [pa.field(each, _arrow(pa, kind)) for each, kind in columns.items()]
        fields += [pa.field(OTHER, pa.string()), *(pa.field(each, place[each]) for each in PLACE)]
        fields += [
            pa.field(
                field,
                pa.list_(pa.field("item", self._element, nullable=False), width),
                nullable=False,
            ),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
        ]
        self._schema = pa.schema(fields, metadata={"lastword": json.dumps(metadata)})
        split = [f"{field}.list.element"] if precision == "float32" else False
        self._file = parquet.ParquetWriter(
            stream, self._schema, compression="zstd", compression_level=1,
            write_page_checksum=True, use_dictionary=[name for name, kind in columns.items() if kind == "string"],
            use_byte_stream_split=split, write_statistics=[name for name in self._schema.names if name != field],
        )  # fmt: skip
        self._lengths: list[tuple[int, bool]] = []

    def note_rows(self, rows: list[tuple[int, bool]]) -> None:
        """Remember, for each row of the next matrix, its number of tokens and whether its text was cut."""
        self._lengths = rows

    def write(self, records: Sequence[Record], matrix: "Tensor") -> None:
        """Append a row group with one row per record."""
        pa, names = self._pa, self._schema.names
        rows = [_split_fields(record, self._columns, self._id_field) for record in records]
        places = [record.place() for record in records]
        columns: dict[str, list[Any]] = {
            _ID: [record.where for record in records],
            OTHER: [others for _, others in rows],
            **{name: [place.get(name) for place in places] for name in PLACE},
            **{name: [values[name] for values, _ in rows] for name in self._columns},
        }
        arrays = [pa.array(columns[name], self._schema.field(name).type) for name in names[:-3]]
        arrays.append(self._vectors(matrix))
        arrays.append(pa.array([tokens for tokens, _ in self._lengths], pa.int32()))
        arrays.append(pa.array([cut for _, cut in self._lengths], pa.bool_()))
        self._attempt(lambda: self._file.write(pa.Table.from_arrays(arrays, schema=self._schema)))

    def finish(self) -> None:
        """Write the end of the file."""
        self._attempt(self._file.close)

    def close(self) -> None:
        """Let go of the stream, even if the file is not complete; otherwise pyarrow would write to it when deleted."""
        self._file.is_open = False

    def _vectors(self, matrix: "Tensor") -> "pa.Array":
        from lastword.weights import tensor_bytes

        pa, data = self._pa, tensor_bytes(matrix)
        values = pa.Array.from_buffers(self._element, matrix.numel(), [None, pa.py_buffer(data)])
        return pa.FixedSizeListArray.from_arrays(
            values, type=self._schema.field(self._vector_field).type
        )

    def _attempt(self, action: Callable[[], object]) -> None:
        attempt(action, self._name)


def column_types(
    records: Iterable[Record], vector_field: str, id_field: str | None = None
) -> dict[str, str]:
    """Return the type of each field of some records: string, int64, double, bool or json.

    A field with values of several types is `json`: its values are written as JSON. A field with whole and other numbers
    is `double`, unless a whole number would lose digits. Fields named like one of the other columns of the file, and
    fields with a name that UTF-8 cannot encode, are left out; they go to the column `other`.

    Args:
        records: the records.
        vector_field: the name of the column of vectors.
        id_field: as for `ParquetFile`. Ids are strings, unless every record has one and all of them fit int64 or
            double.
    """
    own = {*PLACE, *OWN_COLUMNS, vector_field} - {_ID}
    without_id = 0
    found: dict[str, str] = {}
    long = set[str]()  # fields with a whole number that a double cannot hold exactly
    for record in records:
        fields = json.loads(f"{record.fields}}}")
        if id_field is not None:
            fields[_ID] = record.id
        without_id += fields.get(_ID) is None
        for name, value in fields.items():
            kind = _kind(value)
            before = found.setdefault(name, kind or "")
            if kind == "int64" and not _fits(value, "double"):
                long.add(name)
            if kind is None or kind == before:
                continue
            numbers = {before, kind} == {"int64", "double"} and name not in long
            found[name] = kind if not before else "double" if numbers else "json"
    if id_field is not None or _ID in found:
        typed = found.get(_ID) in ("int64", "double") and not without_id
        found[_ID] = found[_ID] if typed else "string"
    return {
        name: kind or "string"
        for name, kind in found.items()
        if name not in own and lone_surrogate(name) is None
    }


def fitting_ids(
    records: Iterable[Record], kind: str, id_field: str | None, on_bad: OnBad
) -> Iterator[Record]:
    """Yield the records whose id has the type of the column of ids; call `on_bad` for the others."""
    if kind == "string":  # any id can be written as a string
        yield from records
        return
    for record in records:
        found = _own_id(record) if id_field is None else record.id
        if _fits(found, kind):
            yield record
            continue
        error = InputError(
            record.where,
            "has a different kind of id from the records sampled for the job's plan",
            got="no id" if found is None else repr(found),
            expected="a whole number" if kind == "int64" else "a number that fits a double",
        )
        on_bad(error, record.path, record.line)


def _kind(value: object) -> str | None:
    """Return the type of the column for a value; None for None. A text that UTF-8 cannot encode is escaped, as JSON."""
    if value is None:
        return None
    if isinstance(value, str) and lone_surrogate(value) is not None:
        return "json"
    kinds: dict[type, str] = {bool: "bool", int: "int64", float: "double", str: "string"}
    kind = kinds.get(type(value), "json")
    return "json" if isinstance(value, int) and not -(2**63) <= value < 2**63 else kind


def _fits(value: object, kind: str) -> bool:
    """Return whether a column of type `kind` can hold a value without loss."""
    if kind == "double" and _kind(value) == "int64":
        assert isinstance(value, int)
        return int(float(value)) == value
    return _kind(value) == kind


def _split_fields(
    record: Record, columns: Mapping[str, str], id_field: str | None
) -> tuple[dict[str, Any], str | None]:
    """Return the values of a record's columns, and its other fields as JSON, or None if it has no others."""
    fields = json.loads(f"{record.fields}}}")
    values = dict[str, Any].fromkeys(columns)
    for name, kind in columns.items():
        if name == _ID and id_field is not None:
            # A field `id` that is not the one chosen goes to the other fields.
            values[name] = _id_value(record.id, kind)
            if id_field == _ID:
                fields.pop(_ID, None)
            continue
        if name == _ID:
            found = fields.pop(_ID, None)
            values[name] = record.where if found is None else _id_value(found, kind)
            continue
        if name not in fields:
            continue
        value = fields[name]
        if kind == "json":
            values[name] = None if value is None else _json(value)
        elif value is None or _fits(value, kind):
            values[name] = float(value) if kind == "double" and value is not None else value
        else:
            continue  # it goes to the other fields
        del fields[name]
    return values, _json(fields) if fields else None


def _json(value: object) -> str:
    """Return JSON that is valid UTF-8: a lone surrogate is escaped, and with it all that is not ASCII."""
    text = json.dumps(value, ensure_ascii=False)
    return text if lone_surrogate(text) is None else json.dumps(value)


def _own_id(record: Record) -> object:
    return json.loads(f"{record.fields}}}").get(_ID) if _ID in record.names else None


def _id_value(value: Any, kind: str) -> Any:
    if kind == "double":
        return float(value)
    if kind == "string" and (not isinstance(value, str) or lone_surrogate(value) is not None):
        return _json(value)
    return value


def _arrow(pa: Any, kind: str) -> Any:
    kinds = {"int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}
    return kinds.get(kind, pa.string())
