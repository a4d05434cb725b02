"""Jobs loaded into a real PostgreSQL with pgvector, as often as one likes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lastword import Embedder
from lastword.cli.main import main

pytest.importorskip("pyarrow.parquet")
pgserver = pytest.importorskip("pgserver")
psycopg = pytest.importorskip("psycopg")

TEXTS = [f"text {i} about {'many ' * (i % 4)}things" for i in range(30)]
JOB = ("--unit-records", "10", "--quiet")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": i, "text": text, "score": i / 2, "odd": {"a": i}} for i, text in enumerate(TEXTS)
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(url: str, table: str, *options: str, out: str = "out/") -> int:
    arguments = ["embed", "in.jsonl", "-o", out, "--to", url, "--table", table]
    return main([*arguments, *JOB, *options])


def rows(url: str, query: str) -> list:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def test_rows_are_those_of_the_job(url: str) -> None:
    assert load(url, "plain") == 0
    found = rows(
        url, 'select id, text, score, line, "end", tokens, embedding::text from plain order by id'
    )
    vectors = Embedder().encode(TEXTS)
    assert [row[:4] for row in found] == [(i, TEXTS[i], i / 2, i + 1) for i in range(30)]
    for row, vector in zip(found, vectors, strict=True):
        assert (torch.tensor(json.loads(row[-1])) - vector).abs().max() < 1e-6
    nearest = "select id from plain order by embedding <=> (select embedding from plain where id = 7) limit 1"
    assert rows(url, nearest) == [(7,)]


def test_loading_again_changes_nothing_and_finishes_what_is_missing(
    url: str, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lastword.bulk import postgres

    real, calls = postgres.PostgresTable._copy, 0

    def broken(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(postgres.PostgresTable, "_copy", broken)
    assert load(url, "again") == 130
    assert rows(url, "select count(*) from again") == [(20,)]
    assert load(url, "again") == 0
    assert calls == 4, "only the third unit was missing"
    assert load(url, "again") == 0
    assert calls == 4
    assert rows(url, "select count(*), count(distinct id) from again") == [(30, 30)]


def test_rows_with_the_same_id_are_replaced(url: str) -> None:
    assert load(url, "replaced") == 0
    lines = [json.dumps({"id": 3, "text": "new"}), json.dumps({"id": 3, "text": "newest"})]
    Path("in.jsonl").write_text("\n".join(lines))
    assert load(url, "replaced", out="two/") == 0
    assert rows(url, "select text from replaced where id = 3") == [("newest",)]
    assert rows(url, "select count(*) from replaced") == [(30,)]


@pytest.mark.parametrize(("precision", "kind"), [("float16", "halfvec"), ("ubinary", "bit")])
def test_precisions(url: str, precision: str, kind: str) -> None:
    if not rows(url, f"select 1 from pg_type where typname = '{kind}'"):
        pytest.skip(f"this pgvector has no type {kind}")
    assert load(url, f"p_{precision}", "--precision", precision) == 0
    query = f"select pg_typeof(embedding)::text, embedding::text from p_{precision} where id = 7"
    [(found, text)] = rows(url, query)
    assert found == kind
    if precision == "ubinary":
        expected = (Embedder().encode(TEXTS)[7] > 0).int().tolist()
        assert [int(bit) for bit in text] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "--to: pgvector has no such type; got int8"),
        (("--format", "npy"), "--to: loads Parquet; got --format npy"),
        (("--dry-run",), "--to: loads vectors; got --dry-run"),
        (("--to", "mysql://x:secret@y/z"), "--to: unknown database; got mysql://..., expected"),
        (("--to", "host=db password=secret"), "--to: unknown database; expected postgresql://"),
        (
            ("--to", "postgresql://me:secret@127.0.0.1:1/x"),
            "--to postgresql://me@127.0.0.1:1/x: the database failed",
        ),
    ],
)
def test_refused(
    url: str, options: tuple[str, ...], message: str, capfd: pytest.CaptureFixture
) -> None:
    assert load(url, "refused", *options) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "secret" not in err


def test_a_table_with_other_vectors_is_refused(url: str, capfd: pytest.CaptureFixture) -> None:
    assert load(url, "space") == 0
    assert load(url, "space", "--dim", "64", out="other/") == 2
    assert "--table space: the table holds other vectors" in capfd.readouterr().err
    with psycopg.connect(url) as connection:
        connection.execute("create table foreigner (id int)")
    assert load(url, "foreigner") == 2
    assert "or is not lastword's" in capfd.readouterr().err


def test_a_character_that_postgres_cannot_store(url: str, capfd: pytest.CaptureFixture) -> None:
    row = {"id": 1, "text": "zero \0 byte", "score": 0.5, "odd": {}}
    Path("in.jsonl").write_text(json.dumps(row))
    assert load(url, "nul") == 2
    assert "in.jsonl:1: has a NUL character in 'text'" in capfd.readouterr().err


def test_every_chunk_is_a_row_and_those_of_a_longer_text_are_replaced(url: str) -> None:
    pytest.importorskip("semantic_text_splitter")
    texts = ["one two three four five. " * 20, "short", "six seven eight nine ten. " * 20]
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    Path("in.jsonl").write_text("\n".join(lines))
    assert load(url, "chunks", "--chunk", "20") == 0
    parts = pytest.importorskip("pyarrow.parquet").read_table("out").to_pylist()
    assert len(parts) > 10
    found = rows(url, "select id, chunk, start, text from chunks order by id, chunk")
    assert found == [(row["id"], row["chunk"], row["start"], row["text"]) for row in parts]
    Path("in.jsonl").write_text("\n".join([json.dumps({"id": 0, "text": "brief"}), lines[2]]))
    assert load(url, "chunks", "--chunk", "20", out="two/") == 0
    left = rows(url, "select id, chunk, text from chunks where id < 2 order by id")
    assert left == [(0, 0, "brief"), (1, 0, "short")]
    assert rows(url, "select count(*) from chunks where id = 2") == [
        (sum(row["id"] == 2 for row in parts),)
    ]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://me:secret@host:5432/db?sslmode=require", "postgresql://me@host:5432/db"),
        ("postgresql://me:secret@a:1,b:2/db", "postgresql://me@a:1,b:2/db"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("postgres:///db?password=secret@x", "postgres:///db"),
        ("postgresql://me:se/secret@host/db", "postgresql://..."),
        ("postgresql://me:secret", "postgresql://..."),
    ],
)
def test_passwords_are_not_shown(given: str, shown: str) -> None:
    from lastword.bulk.postgres import _without_password

    assert _without_password(given) == shown
