"""`embed`: every input format in, every output format out, order and fields kept."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lastword.cli import write
from lastword.model import postprocess as finish

TEXTS = ["one", "", "two € \u2028 three", '"quoted", {braces} 100%', "five"]


def _rows(text):
    return [json.loads(line) for line in text.splitlines()]


def _write_inputs():
    Path("a.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    Path("a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    with open("a.csv", "w", newline="", encoding="utf-8") as stream:
        import csv

        csv.writer(stream).writerows([["text"], *([text] for text in TEXTS)])
    with open("a.tsv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t").writerows([["n", "text"], *enumerate(TEXTS)])


def test_all_inputs_give_the_same_vectors_in_order(cli):
    cli("--version")  # enters the folder
    _write_inputs()
    results = {name: cli("embed", name) for name in ("a.txt", "a.jsonl", "a.csv", "a.tsv")}
    rows = {name: _lines_of(result.out) for name, result in results.items()}
    assert all(result.status == 0 for result in results.values())
    for each in rows.values():
        assert [row["text"] for row in each] == TEXTS
        assert [row["embedding"] for row in each] == [row["embedding"] for row in rows["a.txt"]]
    assert rows["a.tsv"][1]["n"] == "1"
    assert rows["a.txt"][0]["space"] == "space0"
    assert rows["a.txt"][0]["run"] == "run-float32"


def _lines_of(out):
    return [json.loads(line) for line in out.split("\n") if line]  # U+2028 ends no line


def test_report_counts_and_notices_go_to_stderr_last(cli):
    Path("a.txt").write_text("ab\nabc\n" + "x" * 101)
    result = cli("embed", "a.txt")
    assert result.err == (
        "lastword: fake: a notice\n"
        "lastword: 3 texts, 106 tokens asked, 106 computed, 0 (0.0 %) saved by sharing, "
        "1 texts cut, 0 tokens/s\n"
    )
    assert cli("embed", "a.txt", "--quiet").err == ""


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary", "ubinary"])
def test_formats_hold_the_same_values(cli, precision):
    Path("a.txt").write_text("one\ntwo\nthree\nfour")
    options = ("a.txt", "--precision", precision)
    lines = _rows(cli("embed", *options).out)
    assert cli("embed", *options, "-o", "a.safetensors").status == 0
    assert cli("embed", *options, "-o", "a.npy").status == 0
    matrix = np.load("a.npy")
    with safe_open("a.safetensors", framework="pt") as file:
        tensor, metadata = file.get_tensor("embedding"), file.metadata()
    assert matrix.shape == (4, 1 if "binary" in precision else 8)
    assert str(matrix.dtype) == {"binary": "int8", "ubinary": "uint8"}.get(precision, precision)
    assert torch.equal(torch.from_numpy(matrix), tensor)
    exact = np.array([row["embedding"] for row in lines]).astype(matrix.dtype)
    assert np.array_equal(exact, matrix)  # the digits printed give the same bits back
    assert json.loads(Path("a.npy.json").read_bytes()) == metadata
    assert metadata["texts"] == "4"
    assert metadata.keys() == {
        *("space", "run", "model", "dim", "precision", "prompt", "texts", "lastword"),
    }
    assert not list(Path().glob(".lastword*"))


def test_fields_are_carried_through_as_written(cli):
    line = '{"n": 1.10, "big": 123456789012345678901234567890, "far": 1e400, "text": "a\\u0062" }'
    Path("a.jsonl").write_text(f"\ufeff{line}\r\n\n   \n{line}\r\n", encoding="utf-8")
    out = cli("embed", "a.jsonl").out
    assert out.count(line[:-1].rstrip() + ', "embedding": [') == 2


def test_empty_inputs_give_empty_outputs(cli):
    Path("a.txt").write_text("")
    assert cli("embed", "a.txt").out == ""
    assert cli("embed", "a.txt", "-o", "a.npy").status == 0
    assert cli("embed", "a.txt", "-o", "a.safetensors").status == 0
    assert np.load("a.npy").shape == (0, 8)
    with safe_open("a.safetensors", framework="pt") as file:
        assert tuple(file.get_tensor("embedding").shape) == (0, 8)


def test_newlines_are_universal_and_no_other_character_ends_a_line(cli):
    Path("a.md").write_bytes("a\r\nb\rc\n\n\x0b\x0c\x85\u2028d".encode())
    texts = [row["text"] for row in _lines_of(cli("embed", "a.md").out)]
    assert texts == ["a", "b", "c", "", "\x0b\x0c\x85\u2028d"]


def test_stdin_and_several_files_keep_their_order(cli):
    Path("a.txt").write_text("first")
    Path("b.txt").write_text("third")
    result = cli("embed", "a.txt", "-", "--quiet", "b.txt", stdin=b"second\n")
    assert [row["text"] for row in _rows(result.out)] == ["first", "second", "third"]
    result = cli("embed", "--input-format", "csv", stdin=b"id,text\n7,x\n")
    assert _rows(result.out)[0]["id"] == "7"


def test_fields_can_be_renamed(cli):
    Path("a.jsonl").write_text('{"body": "x", "embedding": 1}\n')
    options = ("--text-field", "body", "--vector-field", "100%")
    result = cli("embed", "a.jsonl", *options)
    assert len(_rows(result.out)[0]["100%"]) == 8
    assert cli("embed", "a.jsonl", *options, "-o", "v.safetensors").status == 0
    with safe_open("v.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["100%"]


def test_output_keeps_mode_and_links(cli):
    Path("a.txt").write_text("x")
    Path("real.jsonl").write_text("old")
    os.chmod("real.jsonl", 0o640)
    os.symlink("real.jsonl", "link.jsonl")
    assert cli("embed", "a.txt", "-o", "link.jsonl").status == 0
    assert Path("link.jsonl").is_symlink()
    assert Path("real.jsonl").stat().st_mode & 0o777 == 0o640
    assert _rows(Path("real.jsonl").read_text())[0]["text"] == "x"


def test_saved_ranges_are_read_back(cli):
    Path("a.txt").write_text("one\ntwo\nthree")
    lines = _rows(cli("embed", "a.txt", "--save-ranges", "r.safetensors").out)
    vectors = torch.tensor([row["embedding"] for row in lines])
    with safe_open("r.safetensors", framework="pt") as file:
        ranges, metadata = file.get_tensor("ranges"), file.metadata()
    assert torch.equal(ranges, torch.stack((vectors.amin(0), vectors.amax(0))))
    assert metadata["space"] == "space0"
    options = ("--precision", "uint8", "--ranges", "r.safetensors")
    assert cli("embed", "a.txt", *options).status == 0


def test_memory_does_not_grow_with_the_input(cli, fake_class):
    import tracemalloc

    def peak(texts):
        Path("a.txt").write_text("word " * 20 + "\n")
        with open("a.txt", "w") as stream:
            stream.writelines(f"text {i} {'word ' * 40}\n" for i in range(texts))
        tracemalloc.start()
        assert cli("embed", "a.txt", "-o", "a.safetensors").status == 0
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(10)
    assert peak(3000) < 1.2 * peak(300) + 100_000


def test_every_precision_has_a_layout():
    assert tuple(write.LAYOUTS) == finish.PRECISIONS
