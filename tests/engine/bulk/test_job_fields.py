"""Corpus jobs with templates, conditions, ids and without texts: the output, and that they are part of the plan."""

import json
from pathlib import Path

import pytest

from lastword import Embedder
from lastword.cli.main import main
from lastword.cli.read import Record, Source, stop

pq = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {"id": f"own {i}", "key": i, "title": f"T{i}", "body": f"body {i}", "keep": i % 2}
    for i in range(20)
]


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))


def embed(*arguments: str) -> int:
    return main(["embed", "a.jsonl", "-o", "out/", "--unit-records", "6", *arguments])


TEMPLATE = ("--template", "{title}: {body}")


def test_ids_templates_conditions_and_dropped_texts(capfd) -> None:
    options = (*TEMPLATE, "--where", "keep=1", "--id-field", "key", "--drop-text")
    assert embed(*options) == 0
    assert "0 texts cut, 10 records skipped by --where" in capfd.readouterr().err
    rows = pq.read_table("out").to_pylist()
    assert [row["id"] for row in rows] == list(range(1, 20, 2))
    assert {"title", "body"}.isdisjoint(rows[0])
    assert [row["key"] for row in rows] == [row["id"] for row in rows]
    assert json.loads(rows[0]["other"]) == {"id": "own 1"}
    texts = [f"T{i}: body {i}" for i in range(1, 20, 2)]
    found = [row["embedding"] for row in rows]
    expected = Embedder().encode(texts, show_progress_bar=False)
    assert max(abs(a - b) for x, y in zip(found, expected.tolist(), strict=True)
               for a, b in zip(x, y, strict=True)) < 1e-6  # fmt: skip
    assert json.loads(Path("out/_done/000000.json").read_text())["skipped"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--template", "{body}"), "another template; got {body}, expected {title}: {body}"),
        (("--where", "keep=1"), "another where"),
        (("--id-field", "key"), "another id field"),
        (("--drop-text",), "another drop text"),
    ],
)
def test_they_are_part_of_the_plan(change: tuple[str, ...], message: str, capfd) -> None:
    assert embed(*TEMPLATE, "--quiet") == 0
    assert embed(*(TEMPLATE if change[0] != "--template" else ()), *change) == 2
    assert message in capfd.readouterr().err


def test_bad_ids_are_listed() -> None:
    rows = [{"text": "a", "key": 1}, {"text": "b"}, {"text": "c", "key": None}]
    rows += [{"text": "e", "key": 2}]
    rows += [{"text": "x", "key": i} for i in range(1000)] + [{"text": "f", "key": "late"}]
    Path("a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["embed", "a.jsonl", "-o", "out/", "--id-field", "key", "--quiet"]) == 0
    lines = Path("out/_errors/000000.jsonl").read_text().splitlines()
    errors = [json.loads(line) for line in lines]
    assert [error["line"] for error in errors] == [2, 3, 1005]
    assert "a different kind of id" in errors[2]["error"]
    assert pq.read_table("out").column("id").to_pylist()[:2] == [1, 2]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, "a"], ["1", "a"]),
        ([1, 2.5], [1.0, 2.5]),
        (["b", "a"], ["b", "a"]),
        ([3, 4], [3, 4]),
        ([2**53 + 1, 2.5], ["9007199254740993", "2.5"]),
    ],
)
def test_types_of_ids(ids: list, expected: list) -> None:
    lines = [json.dumps({"text": "a", "id": each}) for each in ids]
    Path("a.jsonl").write_text("\n".join(lines))
    assert embed("--id-field", "id", "--quiet") == 0
    table = pq.read_table("out")
    assert table.column("id").to_pylist() == expected
    assert table.column("other").to_pylist() == [None, None]


def test_a_missing_id_is_the_place_by_default() -> None:
    Path("a.jsonl").write_text('{"text": "a", "id": "x"}\n{"text": "b"}\n')
    assert embed("--quiet") == 0
    assert pq.read_table("out").column("id").to_pylist() == ["x", "a.jsonl:2"]


def test_rows_of_other_formats_hold_ids() -> None:
    assert embed(*TEMPLATE, "--id-field", "id", "--format", "safetensors", "--quiet") == 0
    row = json.loads(Path("out/part-000000.rows.jsonl").read_text().splitlines()[0])
    assert row == {"path": "a.jsonl", "line": 1, "id": "own 0"}


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"a.jsonl": ['{"id": 1, "text": "x"}', '{"id": 2, "text": "y"}']}, [1, 2]),
        (
            {"a.jsonl": ['{"id": "a", "text": "x"}', '{"text": "y"}'], "b.txt": ["z"]},
            ["a", "in/a.jsonl:2", "in/b.txt:1"],
        ),
        ({"a.jsonl": ['{"id": 1, "text": "x"}', '{"id": "five", "text": "y"}']}, ["1", "five"]),
        ({"a.jsonl": ['{"id": 1, "text": "x"}'], "b.csv": ["id,text", "7,y"]}, ["1", "7"]),
        ({"a.jsonl": ['{"id": null, "text": "x"}', '{"id": [1], "text": "y"}']}, ["in/a.jsonl:1", "[1]"]),
    ],
)  # fmt: skip
def test_every_row_has_an_id(
    files: dict, ids: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name, lines in files.items():
        Path("in", name).write_text("".join(f"{line}\n" for line in lines))
    assert main(["embed", "in", "--quiet", "-o", "out/"]) == 0
    assert pq.read_table("out")["id"].to_pylist() == ids


def test_a_late_record_without_a_whole_number_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"id": i, "text": "x"}) for i in range(1001)] + ['{"text": "no id"}']
    Path("a.jsonl").write_text("\n".join(lines))
    assert main(["embed", "a.jsonl", "--quiet", "-o", "out/"]) == 0
    assert pq.read_table("out")["id"].to_pylist() == list(range(1001))
    [error] = map(json.loads, Path("out/_errors/000000.jsonl").read_text().splitlines())
    assert error["line"] == 1002
    assert "got no id, expected a whole number" in error["error"]


def test_whole_numbers_keep_their_digits() -> None:
    late = [{"text": "x", "n": 2**53 + 1, "id": 7}, {"text": "y", "n": 5, "id": 2**53 + 1}]
    rows = [{"text": "a", "n": i + 0.5, "id": i + 0.5} for i in range(1000)] + late
    Path("a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["embed", "a.jsonl", "-o", "out/", "--quiet"]) == 0
    found = pq.read_table("out").to_pylist()
    assert [found[-1][name] for name in ("id", "n", "other")] == [
        7,
        None,
        '{"n": 9007199254740993}',
    ]
    [error] = map(json.loads, Path("out/_errors/000000.jsonl").read_text().splitlines())
    assert error["line"] == 1002
    assert "got 9007199254740993, expected a number that fits a double" in error["error"]


def test_ids_that_are_strings_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    from lastword.bulk import parquet

    monkeypatch.setattr(parquet, "_own_id", lambda record: pytest.fail("parsed"))
    record = Record("a", "a.jsonl", 1, frozenset(("id",)), '{"id": "x"')
    assert list(parquet.fitting_ids([record], "string", None, stop)) == [record]


def test_the_types_are_those_of_at_most_100_files() -> None:
    from lastword.bulk import command

    read: list[str] = []

    class Work:
        def records(self, inputs, meter):
            read.extend(source.path for source in inputs)
            return iter(())

    inputs = [Source(f"{i}.txt", "txt") for i in range(199)]
    assert list(command._sample(Work(), inputs)) == []
    assert len(read) == 100
