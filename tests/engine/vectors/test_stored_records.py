"""What `search` tells of stored vectors: their texts, places and ids; and how it finds and reads their files."""

import argparse
import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from lastword.bulk.plan import Plan
from lastword.cli.commands import search
from lastword.errors import InputError
from lastword.vectors import lines
from lastword.vectors.codes import Codes
from lastword.vectors.find import find_vectors
from lastword.vectors.made import Made

pytest.importorskip("pyarrow")
QUERY = "cats and the moon"
JOB = ("--unit-records", "20")
OUTPUTS = [("p/",), ("l/", "--format", "jsonl"), ("v.jsonl",)]


def fields_of(hits: list[dict], *names: str) -> list[list[object]]:
    """Return these fields of each hit."""
    return [[hit.get(name) for name in names] for hit in hits]


# Texts.


@pytest.mark.parametrize("output", OUTPUTS)
def test_texts_of_a_template(call, output) -> None:
    template = ("--template", "{id}: {text}")
    call.embed("a.jsonl", *template, "-o", *output)
    found, expected = call.hits(QUERY, output[0]), call.hits(QUERY, "a.jsonl", *template)
    assert found[0]["text"].startswith("doc-")
    names = ("line", "text", "record")
    assert fields_of(found, *names) == fields_of(expected, *names)
    if output[0] == "p/":  # a part that was moved out of its job's folder
        Path("p/part-000000.parquet").rename("moved.parquet")
        assert fields_of(call.hits(QUERY, "moved.parquet"), *names) == fields_of(expected, *names)


@pytest.mark.parametrize("output", OUTPUTS)
def test_texts_of_another_field(call, output) -> None:
    call.embed("a.jsonl", "--text-field", "id", "-o", *output)
    assert {hit["text"][:4] for hit in call.hits(QUERY, output[0])} == {"doc-"}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    ("source", "options", "kept"),
    [
        ("a.jsonl", (), {"id"}),
        ("only.jsonl", (), None),
        ("a.jsonl", ("--template", "{id}: {text}"), None),
    ],
)
def test_texts_that_were_dropped(call, output, source, options, kept) -> None:
    rows = Path("a.jsonl").read_text().splitlines()
    only = [{"text": json.loads(line)["text"]} for line in rows]
    Path("only.jsonl").write_text("".join(json.dumps(each) + "\n" for each in only))
    call.embed(source, *options, "--drop-text", "-o", *output)
    found, expected = call.hits(QUERY, output[0]), call.hits(QUERY, source, *options)
    assert fields_of(found, "line") == fields_of(expected, "line")
    assert {hit["text"] for hit in found} == {None}
    assert [hit["record"].keys() if kept else "record" in hit for hit in found] == [
        kept or False
    ] * 10
    error = call.refused(QUERY, output[0], "--rerank", "x")
    assert "--rerank: needs the texts; got " in error
    assert "which holds no texts" in error


# Places and ids.


def test_fields_named_like_a_place(call) -> None:
    own = {"text": "cats", "path": "/etc/hosts", "line": 7}
    Path("one.jsonl").write_text(json.dumps(own) + "\n")
    call.embed("one.jsonl", "-o", "v.jsonl")
    (hit,) = call.hits(QUERY, "v.jsonl")
    assert (hit["path"], hit["line"], hit["record"]) == ("v.jsonl", 1, own)


def test_places_of_several_files_below_a_header(call) -> None:
    assert call("embed", "a.jsonl", "a.txt", "--header").status == 0
    Path("piped.jsonl").write_text(call.out)
    found = call.hits(QUERY, "piped.jsonl", "--top-k", "120")
    assert {hit["path"] for hit in found} == {"a.jsonl", "a.txt"}


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_ids_beside_a_matrix(call, kind) -> None:
    call.embed("a.jsonl", "--id-field", "id", "-o", "n/", "--format", kind)
    found = call.hits(QUERY, "n/")
    assert [hit["id"] for hit in found] == [f"doc-{hit['line'] - 1}" for hit in found]


# Ranges of earlier versions.


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("int8", ": made with --ranges by an earlier version of lastword"),
        ("uint8", "v.npy: made by an earlier version of lastword"),
    ],
)
def test_ranges_that_were_not_written_down(call, precision, said) -> None:
    call.embed("a.jsonl", "a.txt", "-o", "f.npy", "--save-ranges", "r.safetensors")
    call.embed("a.txt", "-o", "v.npy", "--precision", precision, "--ranges", "r.safetensors")
    metadata = json.loads(Path("v.npy.json").read_text())
    del metadata["ranges"]
    Path("v.npy.json").write_text(json.dumps(metadata))
    error = call.refused(QUERY, "v.npy")
    assert error.startswith("lastword: v.npy")
    assert said in error


def test_int8_codes_without_ranges() -> None:
    codes = Codes(Made("v", "s", "m", 2, "int8", None), "cosine", None, unit=True)
    good = torch.tensor([[0, 0], [-127, 3], [5, 127]], dtype=torch.int8)
    assert codes.vectors(good).isfinite().all()
    for bad in ([126, 0], [-128, 127]):
        with pytest.raises(InputError) as caught:
            codes.vectors(torch.cat([good, torch.tensor([bad], dtype=torch.int8)]))
        assert caught.value.index == 3


# How files are found and read.


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")
def test_parts_are_open_only_while_they_are_read(call) -> None:
    call.embed("a.jsonl", "-o", "v/", "--unit-records", "10")
    (found,) = find_vectors(["v/"], "text")
    assert len(found.files) == 6
    every = [next(file.blocks()) for file in found.files]
    records = [record for file in found.files for record in file.records([0, 9])]
    assert (len(every), len(records)) == (6, 12)
    links = (str(path.resolve()) for path in Path("/proc/self/fd").iterdir())
    assert [link for link in links if link.endswith(".parquet")] == []


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_and_one_of_its_parts(call, first) -> None:
    call.embed("a.jsonl", "-o", "v/", *JOB)
    os.symlink("v/part-000002.parquet", "link.parquet")
    given = ["v/", "v/part-000001.parquet", "link.parquet"]
    found = call.hits(QUERY, *(given if first else given[::-1]), "--top-k", "100")
    assert sorted(hit["line"] for hit in found) == list(range(1, 61))


def test_a_plan_is_read_once_for_all_named_parts(call, monkeypatch) -> None:
    call.embed("a.jsonl", "-o", "v/", *JOB)
    os.symlink("v", "w")
    expected = call.hits(QUERY, "v/")
    loaded, load = [], Plan.load
    monkeypatch.setattr(Plan, "load", lambda folder: loaded.append(folder) or load(folder))
    parts = [f"{folder}/part-00000{i}.parquet" for i, folder in enumerate("vwv")]
    assert call.hits(QUERY, *parts) == expected
    assert len(loaded) == 1


def test_lines_are_read_once_for_all_hits(call, monkeypatch) -> None:
    class Counted(io.BufferedReader):
        lines = 0

        def __next__(self) -> bytes:
            Counted.lines += 1
            return super().__next__()

    call.embed("a.jsonl", "-o", "v.jsonl")
    monkeypatch.setattr(lines, "_GROUP", 25)
    (found,) = find_vectors(["v.jsonl"], "text")
    assert sum(map(len, found.files[0].blocks())) == 60
    monkeypatch.setattr(lines, "open", lambda path, _: Counted(io.FileIO(path)), raising=False)
    rows = [0, 3, 24, 25, 49, 58]
    assert [record.line for record in found.files[0].records(rows)] == [row + 1 for row in rows]
    assert Counted.lines == 25 + 25 + 9


def test_urls_beside_vectors(call) -> None:
    call.embed("a.txt", "-o", "v.npy")
    error = call.refused(QUERY, "v.npy", "s3://b/x.txt")
    assert "s3://b/x.txt: texts and stored vectors cannot be searched together" in error
    args = argparse.Namespace(query="s3://b/x.txt", files=[])
    search._take_as_file(args)
    assert args.files == ["s3://b/x.txt"]
