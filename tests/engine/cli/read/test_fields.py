"""Texts made by templates, ids, and conditions on fields, in every format that has fields."""

import argparse
import csv
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastword.cli import options
from lastword.cli.documents.chunks import without_text
from lastword.cli.main import main
from lastword.cli.read import Condition, Fields, Record, Source, Template, read
from lastword.errors import InputError

ROWS = [
    {"title": "A", "text": "a {b}", "year": 1999, "kind": "x"},
    {"title": "B", "text": "bé", "year": 2000, "kind": "y"},
    {"title": "", "text": "c", "year": 2001, "kind": "x"},
]


def write_rows(folder: Path, kind: str, rows: list[dict]) -> Source:
    path = folder / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
        writer.writerows([list(rows[0]), *(row.values() for row in rows)])
        path.write_text(out.getvalue())
    return Source(str(path), kind)


def read_all(source: Source, fields: Fields) -> tuple[list[Record], list[str]]:
    errors: list[str] = []
    bad = lambda error, path, line: errors.append(str(error))  # noqa: E731
    return list(read([source], fields, on_bad=bad)), errors


KINDS = pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])


@KINDS
def test_templates(kind: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path, kind, ROWS)
    found, errors = read_all(source, Fields(Template("{{{title}}}\n{text}: {year}{title}")))
    assert not errors
    assert [record.text for record in found] == [
        "{A}\na {b}: 1999A",
        "{B}\nbé: 2000B",
        "{}\nc: 2001",
    ]
    assert json.loads(found[0].fields + "}").keys() == ROWS[0].keys()


def test_templates_take_nested_fields_and_write_numbers_as_json(tmp_path: Path) -> None:
    rows = [{"doc": {"n": 1.0, "b": True}, "doc.b": "own"}, {"doc": {"n": None}}, {"doc": [1]}]
    rows += [{"doc": {"n": 2**70, "b": [1]}}, {"doc": {"n": "x\ud800", "b": 1}}, {"n": 1}]
    source = write_rows(tmp_path, "jsonl", rows)
    found, errors = read_all(source, Fields(Template("{doc.n} {doc.b}")))
    assert [record.text for record in found] == ["1.0 own"]
    assert [error.partition(": ")[2] for error in errors] == [
        "wrong field 'doc.n'; got null, expected a string or a number.",
        "has no field 'doc.n'; got a list in 'doc', expected an object.",
        "wrong field 'doc.b'; got a list, expected a string or a number.",
        "field 'doc.n' contains a lone surrogate. Remove it.",
        "has no field 'doc'; got n. Change --template.",
    ]
    found, _ = read_all(source, Fields(Template("{doc.n}")))
    assert [record.text for record in found] == ["1.0", str(2**70)]


def test_templates_of_parquet_write_dates(tmp_path: Path) -> None:
    source = write_rows(tmp_path, "parquet", [{"day": date(2026, 1, 2), "x": {"y": 2.5}}])
    found, errors = read_all(source, Fields(Template("{day} {x.y}")))
    assert not errors
    assert [record.text for record in found] == ["2026-01-02 2.5"]


def test_parquet_values_that_json_does_not_have_are_null_or_strings(tmp_path: Path) -> None:
    odd = {"n": float("nan"), "list": [1.5, float("inf")], "in": {"x": float("-inf")}}
    rows = [{"text": "a", "price": Decimal("2.50"), **odd}]
    source = write_rows(tmp_path, "parquet", rows)
    (found,), errors = read_all(source, Fields(where=[Condition.parse("price>2")]))
    assert not errors
    refuse = lambda name: pytest.fail(name)  # noqa: E731
    assert json.loads(found.fields + "}", parse_constant=refuse) == {
        "text": "a",
        "price": "2.50",
        "n": None,
        "list": [1.5, None],
        "in": {"x": None},
    }


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no field", "names no field"),
        ("{}", "has a field without a name"),
        ("{a!r}", "has a format or conversion"),
        ("{a:>3}", "has a format or conversion"),
        ("{a:{b}}", "has a format or conversion"),
        ("{a[0]}", "has a field with an index"),
        ("{a", "is not valid"),
        ("a} {b}", "is not valid"),
    ],
)
def test_templates_that_are_refused(template: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^--template: {message}"):
        Template(template)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=5), st.sampled_from(["a", "b c", "d.e"])), min_size=1))
def test_a_template_fills_in_what_str_format_would(parts: list[tuple[str, str]]) -> None:
    escape = lambda text: text.replace("{", "{{").replace("}", "}}")  # noqa: E731
    values = {"a": "1 {x}", "b c": "", "d.e": "\n"}
    template = Template("".join(f"{escape(text)}{{{name}}}" for text, name in parts))
    assert template.fill(values, "") == "".join(text + values[name] for text, name in parts)


@KINDS
@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (["kind=x"], "Ac"),
        (["kind!=x"], "B"),
        (["year>=2000"], "Bc"),
        (["year < 2000"], "A"),
        (["year=2000"], "B"),
        (["year>1998.5", "year<=2001", "kind=x"], "Ac"),
        (["title="], "c"),
        (["kind=z"], ""),
    ],
)
def test_conditions(kind: str, conditions: list[str], kept: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path, kind, ROWS)
    fields = Fields(where=[Condition.parse(each) for each in conditions])
    found, errors = read_all(source, fields)
    assert not errors
    wanted = [{"A": "a {b}", "B": "bé", "c": "c"}[each] for each in kept]
    assert [record.text for record in found] == wanted
    assert fields.skipped == len(ROWS) - len(kept)


@pytest.mark.parametrize(
    ("given_", "row", "holds"),
    [
        ("a=null", {}, True),
        ("a=null", {"a": None}, True),
        ("a!=null", {"a": "x"}, True),
        ("a!=x", {}, True),
        ("a<3", {}, False),
        ("a<3", {"a": None}, False),
        ("a<3", {"a": True}, False),
        ("a<3", {"a": "two"}, False),
        ("a<3", {"a": " 2.5 "}, True),
        ("a<3", {"a": float("nan")}, False),
        ("a=true", {"a": True}, True),
        ("a=1", {"a": True}, False),
        ("a=1.0", {"a": 1}, True),
        ("a=1.0", {"a": "1"}, False),
        ("a.b=x=y", {"a": {"b": "x=y"}}, True),
        ("a.b=x", {"a.b": "x", "a": {"b": "y"}}, True),
        ("a=[1]", {"a": [1]}, False),
        ("a>9007199254740992", {"a": 9007199254740993}, True),
        ("a>5", {"a": 10**400}, True),
        (f"a={10**400}", {"a": 10**400}, True),
        ("a<5", {"a": "9" * 400}, False),
        ("a>5", {"a": Decimal("5.01")}, True),
        ("a>=0.1", {"a": Decimal("0.1")}, True),
        ("a=0.10", {"a": Decimal("0.1")}, True),
        ("a=x", {"a": Decimal("0.1")}, False),
        ("a>5", {"a": Decimal("NaN")}, False),
        (" a = x ", {"a": "x"}, True),
        ("a = true", {"a": True}, True),
    ],
)
def test_what_a_condition_means(given_: str, row: dict, holds: bool) -> None:
    assert Condition.parse(given_).holds(row) is holds


@pytest.mark.parametrize("given_", ["", "a", "=x", "a<x", "a>=", "<1", "a==1", "a!==1", "a = =x"])
def test_conditions_that_are_refused(given_: str) -> None:
    with pytest.raises(InputError, match=r"^--where: "):
        Condition.parse(given_)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (Fields(where=[Condition("gone", "=", "x")]), r"has no field 'gone'.*Change --where"),
        (Fields(id="gone"), r"has no field 'gone'.*with --id-field"),
        (Fields(Template("{gone}")), r"has no field 'gone'.*Change --template"),
    ],
)
def test_a_column_that_a_table_lacks(kind: str, fields: Fields, message: str, tmp_path) -> None:
    source = write_rows(tmp_path, kind, ROWS)
    with pytest.raises(InputError, match=message):
        list(read([source], fields))


def test_skipped_records_need_no_text(tmp_path: Path) -> None:
    source = write_rows(tmp_path, "jsonl", [{"kind": "x"}, {"kind": "y", "text": "y"}])
    found, errors = read_all(source, Fields(where=[Condition("kind", "=", "y")]))
    assert [record.text for record in found] == ["y"]
    assert not errors


def test_ids(tmp_path: Path) -> None:
    ids = [7, "a", 2.5, None, True, [1], "x\ud800"]
    rows = [{"text": "t", "doc": {"key": each}} for each in ids] + [{"text": "t", "doc": {}}]
    found, errors = read_all(write_rows(tmp_path, "jsonl", rows), Fields(id="doc.key"))
    assert [record.id for record in found] == [7, "a", 2.5]
    assert [error.partition(":")[2].partition("; ")[0] for error in errors] == [
        "4: wrong field 'doc.key'",
        "5: wrong field 'doc.key'",
        "6: wrong field 'doc.key'",
        "7: field 'doc.key' contains a lone surrogate. Remove it.",
        "8, in 'doc': has no field 'key'",
    ]


@pytest.mark.parametrize(
    ("record", "names", "expected"),
    [
        ('{"text": "t"', ["text"], "{"),
        ('{"n":1.50, "text" : "t" , "m": [ 1]', ["text"], '{"n": 1.50, "m": [ 1]'),
        ('{"d": {"a": 1, "b": "t"}, "c": 2', ["d.b", "c"], '{"d": {"a": 1}'),
        ('{"d.b": 1, "d": {"b": "t"}', ["d.b"], '{"d": {"b": "t"}'),
    ],
)
def test_without_text(record: str, names: list[str], expected: str) -> None:
    (found,) = without_text([Record("t", "p", 1, frozenset(), record)], names)
    assert (found.fields, found.text) == (expected, "t")


def embed(*arguments: object) -> int:
    return main(["embed", *map(str, arguments)])


def test_options_of_plain_text(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one\n")
    Path("a.jsonl").write_text('{"text": "one"}\n')
    for option in (("--template", "{a}"), ("--where", "a=1"), ("--id-field", "a")):
        assert embed("a.jsonl", "a.txt", *option) == 2
        assert f"{option[0]}: needs records with fields; got plain text" in capfd.readouterr().err
    assert embed("a.jsonl", "--template", "{a}", "--chunk", 5) == 2
    assert "--template: makes texts that cannot be split" in capfd.readouterr().err
    assert embed("a.jsonl", "--template", "{a}", "--text-field", "b") == 2
    assert "--text-field: cannot be combined with --template" in capfd.readouterr().err


def test_output_with_ids_and_without_texts(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path(), "jsonl", ROWS)
    chosen = ("--where", "kind=x", "--template", "{title} {text}", "--id-field", "year")
    assert embed("a.jsonl", *chosen, "--drop-text", "--dim", 2) == 0
    out, err = capfd.readouterr()
    lines = list(map(json.loads, out.splitlines()))
    assert [line.keys() for line in lines] == [{"year", "kind", "embedding"}] * 2
    assert "1 record skipped by --where" in err
    Path("b.txt").write_text("plain\n")
    assert embed("b.txt", "--drop-text", "--dim", 2) == 0
    assert json.loads(capfd.readouterr().out).keys() == {"embedding"}
    Path("b.jsonl").write_text('{"text": "one. two.", "id": 5}\n')
    for drop, keys in ((), {"text"}), (("--drop-text",), set()):
        assert embed("b.jsonl", "--chunk", 20, "--id-field", "id", "-o", "o.npy", *drop) == 0
        row = json.loads(Path("o.npy.rows.jsonl").read_text())
        assert row.keys() == {"path", "line", "chunk", "start", "end", "id"} | keys
        assert row["id"] == 5


def test_search_and_no_text_that_is_left(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path(), "csv", ROWS)
    arguments = ["search", "tin", "a.csv", "--template", "{title}/{text}", "--where"]
    assert main([*arguments, "kind=y"]) == 0
    out, err = capfd.readouterr()
    assert "a.csv:3  B/bé" in out
    assert "2 records skipped by --where" in err
    assert main([*arguments, "kind=z"]) == 2
    assert "no text that --where leaves; got 3 records skipped" in capfd.readouterr().err


def test_fields_of_options() -> None:
    args = argparse.Namespace(text_field="body", template=None, where=["a=1"], id_field="key")
    fields = options.fields_of(args)
    assert (fields.text, fields.id, fields.where) == ("body", "key", (Condition("a", "=", "1"),))
