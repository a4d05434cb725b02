"""Load the vectors of a job into a table of PostgreSQL with the extension pgvector.

A unit is loaded in one transaction. Its rows are copied to a temporary table and inserted from there, replacing rows
with the same id and chunk; then the unit is noted in the table NAME_units. So a unit is loaded once, whatever is
interrupted. Needs psycopg and pyarrow.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lastword.bulk.job import Job, UnitResult
from lastword.bulk.parquet import OTHER
from lastword.bulk.plan import Unit
from lastword.cli import write
from lastword.errors import ConfigError, InputError, require_extra

if TYPE_CHECKING:
    from psycopg import Connection

# PostgreSQL's types of columns, by Arrow's; anything else is text.
_TYPES = {"int64": "bigint", "int32": "integer", "double": "double precision", "bool": "boolean"}
_ROWS = 1000  # read at once
# A URL that can be shown once its password and parameters are left out: its scheme, user, hosts and path.
_HOST = r"(?:\[[^\]/@]*\]|[^][:/?#@,]*)(?::\d*)?"
_SHOWN = re.compile(
    rf"(\w+://)(?:([^:/?#@]*)(?::[^/?#@]*)?@)?({_HOST}(?:,{_HOST})*)(/[^?#@]*)?(?:\?.*)?"
)
# The types of pgvector, by precision.
_VECTORS = {"float32": "vector", "float16": "halfvec", "ubinary": "bit"}


class PostgresTable:
    """A table that the units of a job are loaded into.

    Args:
        url: the database: postgresql://USER@HOST/DATABASE, as libpq reads it.
        name: the name of the table. It is created if it does not exist.
        metadata: the job's metadata.
        field: the name of the column of vectors.

    Raises:
        ConfigError: psycopg is missing, or the precision has no type in pgvector.
        InputError: the database cannot be reached.
    """

    def __init__(self, url: str, name: str, metadata: Mapping[str, str], field: str) -> None:
        with require_extra("psycopg", "postgres", "--to postgresql://"):
            import psycopg
        precision = metadata["precision"]
        if precision not in _VECTORS:
            expected = f"--precision {', '.join(list(_VECTORS)[:-1])} or {list(_VECTORS)[-1]}"
            raise ConfigError("--to", "pgvector has no such type", got=precision, expected=expected)
        self._psycopg, self._name, self._field = psycopg, name, field
        self._where = f"--to {_without_password(url)}"
        self._dim = int(metadata["dim"])
        self._kind, self._packed = _VECTORS[precision], precision == "ubinary"
        self._template = f"[{write.numbers(write.ELEMENT_TYPES[precision], self._dim)}]"
        self._space = f"lastword {metadata['space']} {precision} {self._dim}"
        with self._named_errors():
            self._connection: Connection = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def load(
        self, job: Job, results: Mapping[int, UnitResult], loaded: Callable[[Unit], object]
    ) -> int:
        """Load the units that are done and not yet in the table; return the number of their rows.

        Args:
            job: the job.
            results: the results of its units, by number.
            loaded: called for each unit after it is loaded.

        Raises:
            InputError: the database fails or has no pgvector, the table holds other vectors, or a text has a NUL
                character.
        """
        rows, created = 0, False
        for unit in job.plan.units:
            if unit.number not in results:
                continue
            path = job.path(unit)
            key = str(results[unit.number].files[path.name][1])
            with self._named_errors(), self._open(str(path)) as file:
                if not created:
                    self._create(file.schema_arrow)
                    created = True
                if not self._has(key):
                    rows += self._copy(file, unit, key)
            loaded(unit)
        return rows

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            yield file

    def _create(self, schema: Any) -> None:
        """Create the tables, or check that the table holds vectors of the same space."""
        sql = self._psycopg.sql
        run = self._connection.execute
        run("create extension if not exists vector")
        columns = []
        for field in schema:
            kind = f"{self._kind}({self._dim})" if field.name == self._field else _type(field)
            # All chunks of a record have its id. A primary key takes no null, so a whole text is chunk 0.
            default = " not null default 0" if field.name == "chunk" else ""
            kind += default
            columns.append(sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(kind)))
        columns.append(sql.SQL("primary key (id, chunk)"))
        table = sql.Identifier(self._name)
        query = "select obj_description(to_regclass(quote_ident(%s)), 'pg_class'), to_regclass(quote_ident(%s))"
        found = run(query, (self._name, self._name)).fetchone() or (None, None)
        if found[1] is None:
            run(sql.SQL("create table {} ({})").format(table, sql.SQL(", ").join(columns)))
            run(sql.SQL("comment on table {} is {}").format(table, sql.Literal(self._space)))
        elif found[0] != self._space:
            raise InputError(
                f"--table {self._name}",
                "the table holds other vectors, or is not lastword's",
                got=repr(found[0]),
                expected=repr(self._space),
                remedy="Choose another name with --table.",
            )
        run(
            sql.SQL("create table if not exists {} (sha256 text primary key, unit integer)").format(
                self._units
            )
        )

    @property
    def _units(self) -> Any:
        return self._psycopg.sql.Identifier(f"{self._name}_units")

    def _has(self, key: str) -> bool:
        query = self._psycopg.sql.SQL("select 1 from {} where sha256 = %s").format(self._units)
        return self._connection.execute(query, (key,)).fetchone() is not None

    def _copy(self, file: Any, unit: Unit, key: str) -> int:
        """Copy the rows of a unit in one transaction; return their number."""
        sql, table = self._psycopg.sql, self._psycopg.sql.Identifier(self._name)
        names = [sql.Identifier(field.name) for field in file.schema_arrow]
        listed = sql.SQL(", ").join(names)
        rows = 0
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(
                sql.SQL(
                    "create temporary table lastword_new (like {}, lastword_row bigserial) on commit drop"
                ).format(table)
            )
            into = sql.SQL("copy lastword_new ({}) from stdin").format(listed)
            with cursor.copy(into) as copy:
                for batch in file.iter_batches(_ROWS):
                    for row in batch.to_pylist():
                        copy.write_row(self._values(row))
                        rows += 1
            new = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(name) for name in names)
            cursor.execute(
                sql.SQL(
                    "delete from {} as old using (select id, max(chunk) as last from lastword_new group by id) as new "
                    "where old.id = new.id and old.chunk > new.last"
                ).format(table)
            )  # the chunks of an earlier, longer text
            cursor.execute(
                sql.SQL(
                    "insert into {} ({}) select {} from (select distinct on (id, chunk) * from lastword_new "
                    "order by id, chunk, lastword_row desc) as latest on conflict (id, chunk) do update set {}"
                ).format(table, listed, listed, new)
            )
            query = sql.SQL("insert into {} values (%s, %s) on conflict do nothing")
            cursor.execute(query.format(self._units), (key, unit.number))
        return rows

    def _values(self, row: dict[str, Any]) -> list[Any]:
        """Return the values of a row as COPY takes them."""
        vector = row[self._field]
        row["chunk"] = row["chunk"] or 0
        if self._packed:
            row[self._field] = "".join(f"{byte:08b}" for byte in vector)
        else:
            row[self._field] = self._template % tuple(vector)
        for name, value in row.items():
            if isinstance(value, str) and "\0" in value:
                place = f"{row.get('path')}:{row.get('line')}"
                what = f"has a NUL character in {name!r}, which PostgreSQL cannot store"
                raise InputError(place, what, remedy="Remove it from the input.")
        return list(row.values())

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn the errors of the database in the `with` block into errors that name it."""
        try:
            yield
        except self._psycopg.Error as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(self._where, f"the database failed ({lines[0]})") from error


def _type(field: Any) -> str:
    return "jsonb" if field.name == OTHER else _TYPES.get(str(field.type), "text")


def _without_password(url: str) -> str:
    """Return a URL without its password and its parameters, for messages; only its scheme if it is an unusual one."""
    found = _SHOWN.fullmatch(url)
    if found is None:
        return f"{url.partition('://')[0]}://..."
    scheme, user, hosts, path = found.groups(default="")
    return f"{scheme}{user and f'{user}@'}{hosts}{path}"
