"""`embed`: every input and output format; the order of texts and the other fields are kept."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lastword.bench.options import QUANTIZE
from lastword.cli import options, write
from lastword.cli.read import Record
from lastword.cli.stream import embed_records
from lastword.errors import InputError
from lastword.model import postprocess

TEXTS = ["one", "", "two € \u2028 three", '"quoted", {braces} 100%', "five"]


METADATA = {
    *("space", "run", "fingerprints", "model", "dim", "precision", "prompt", "texts", "lastword"),
}
FIELDS = {
    "a.jsonl": '{"text": "x", "space": "mine", "run": "7"}',
    "a.csv": "text,run,space\nx,7,mine\n",
}


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
    assert rows["a.txt"][0].keys() == {"text", "embedding"}


def _lines_of(out):
    return [json.loads(line) for line in out.split("\n") if line]  # U+2028 ends no line


def test_report_counts_and_notices_go_to_stderr_last(cli):
    Path("a.txt").write_text("ab\nabc\n" + "x" * 101)
    result = cli("embed", "a.txt")
    assert result.err == (
        "lastword: fake: a notice\n"
        "lastword: 3 texts, 106 tokens requested, 106 computed, 0 (0.0 %) saved by sharing, "
        "1 text cut, 0 tokens/s\n"
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
    described = json.loads(Path("a.npy.json").read_bytes())
    assert {name: str(value) for name, value in described.items()} == metadata
    assert {name: described[name] for name in ("texts", "dim", "fingerprints")} == {
        "texts": 4,
        "dim": 8,
        "fingerprints": 2,
    }
    assert metadata["texts"] == "4"
    assert metadata.keys() == METADATA
    assert metadata["fingerprints"] == "2"
    assert (metadata["space"], metadata["run"]) == ("space0", f"run-{precision}")
    assert not list(Path().glob(".lastword*"))
    assert cli("embed", *options, "-o", "a.jsonl").status == 0
    assert _rows(Path("a.jsonl").read_text()) == lines
    assert json.loads(Path("a.jsonl.json").read_bytes()) == described
    assert not Path("a.safetensors.json").exists()


def test_a_requested_header_comes_first_on_stdout(cli):
    Path("a.txt").write_text("one\ntwo")
    assert cli("embed", "a.txt", "-o", "a.jsonl").status == 0
    for out in ((), ("-o", "-")):
        header, *lines = cli("embed", "a.txt", "--header", *out).out.splitlines(keepends=True)
        assert "".join(lines) == Path("a.jsonl").read_text()
        (described,) = json.loads(header).items()
        assert described[0] == "lastword"
        assert {**described[1], "texts": 2} == json.loads(Path("a.jsonl.json").read_bytes())
    Path("a.txt").write_text("")
    assert cli("embed", "a.txt", "--header").out == header


def test_the_vectors_are_in_place_before_their_metadata(cli, monkeypatch):
    Path("a.txt").write_text("one\ntwo")
    placed, replace = [], os.replace

    def noted(part, target):
        placed.append(os.path.basename(target))
        replace(part, target)

    monkeypatch.setattr(os, "replace", noted)
    for name in ("a.jsonl", "a.npy"):
        assert cli("embed", "a.txt", "-o", name, "--save-ranges", "r").status == 0
        assert placed == [name, f"{name}.json", "r"]
        placed.clear()


@pytest.mark.parametrize(("name", "content"), FIELDS.items())
def test_fields_named_space_and_run_belong_to_the_caller(cli, name, content):
    Path(name).write_text(content)
    for field in ("embedding", "lastword"):
        (row,) = _rows(cli("embed", name, "--vector-field", field).out)
        assert (row["space"], row["run"], len(row[field])) == ("mine", "7", 8)
    Path("a.txt").write_text("x")
    (row,) = _rows(cli("embed", "a.txt", "--vector-field", "space").out)
    assert len(row["space"]) == 8


def test_records_may_be_read_ahead_in_another_thread(fake_class):
    """Each group gets its own records and an error its own place, however far the model has read ahead."""

    class Ahead(fake_class):
        def encode_groups(self, texts, **options):
            with ThreadPoolExecutor(1) as thread:
                read = thread.submit(list, texts).result()
            yield from super().encode_groups(read, **options)

    records = [Record(f"text {i}", "a.txt", i + 1, frozenset(), "") for i in range(10)]
    groups = list(embed_records(Ahead(), records, ""))
    assert (
        [len(group) for group, _ in groups] == [len(matrix) for _, matrix in groups] == [3, 3, 3, 1]
    )
    assert [record for group, _ in groups for record in group] == records
    records[7] = Record("NOTOKENS", "b.txt", 1, frozenset(), "")
    with pytest.raises(InputError) as caught:
        list(embed_records(Ahead(), records, ""))
    assert (caught.value.where, caught.value.what) == ("b.txt:1", "gives no token")


def test_fields_are_carried_through_as_written(cli):
    line = '{"n": 1.10, "big": 123456789012345678901234567890, "far": 1e400, "text": "a\\u0062" }'
    Path("a.jsonl").write_text(f"\ufeff{line}\r\n\n   \n{line}\r\n", encoding="utf-8")
    out = cli("embed", "a.jsonl").out
    assert out.count(line[:-1].rstrip() + ', "embedding": [') == 2


ODD = "\r\x00\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029d"  # str.splitlines splits at all of these


# An input, and the texts in it: as many as `wc -l` counts, and one more after the last line end.
LINES = {
    "a.md": (f"a\r\nb\rc\n\n{ODD}\r\r\n\re\r", ["a", "b\rc", "", f"{ODD}\r", "\re\r"]),
    "a.jsonl": (
        '\r{"text":\r"a"}\r\r\n \t\r\n{"text": "\x85\u2028\u2029d"}',
        ["a", "\x85\u2028\u2029d"],
    ),
    "a.csv": (f'n,text\r\n1,"a\rb\r\nc{ODD}"\r\n2,d\n', [f"a\rb\r\nc{ODD}", "d"]),
    "a.tsv": ("text\tn\na\x0b\x85\u2028\t1", ["a\x0b\x85\u2028"]),
    "mark.txt": ("\ufeffa\n\ufeffb", ["a", "\ufeffb"]),
    "mark.csv": ("\ufefftext\na\n", ["a"]),
    "only-mark.txt": ("\ufeff", []),
    "line-after-mark.txt": ("\ufeff\nb", ["", "b"]),
}


@pytest.mark.parametrize(("name", "content", "texts"), [(n, *case) for n, case in LINES.items()])
def test_only_a_line_feed_ends_a_line(cli, name, content, texts):
    Path(name).write_bytes(content.encode())
    assert [row["text"] for row in _lines_of(cli("embed", name).out)] == texts


@pytest.mark.parametrize(
    "path", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/stderr"]
)
def test_an_open_stream_is_written_as_it_goes(cli, path):
    Path("a.txt").write_text("one\ntwo\n")
    plain = cli("embed", "a.txt", "--quiet")
    result = cli("embed", "a.txt", "--quiet", "-o", path)
    assert (result.status, {result.out, result.err}) == (0, {plain.out, ""})
    assert os.listdir() == ["a.txt"]


@pytest.mark.parametrize("kind", ["pipe", "link", "descriptor"])
def test_a_pipe_is_written_as_it_goes(cli, kind):
    Path("a.txt").write_text("one\ntwo\n")
    plain = cli("embed", "a.txt", "--quiet")
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    with ThreadPoolExecutor(1) as thread:
        if kind == "descriptor":
            reader, writer = os.pipe()
            assert cli("embed", "a.txt", "-o", f"/dev/fd/{writer}", "--quiet").status == 0
            os.write(writer, b"open still")
            os.close(writer)
            with open(reader, "rb") as stream:
                written = stream.read().removesuffix(b"open still")
        else:
            read = thread.submit(Path("pipe").read_bytes)
            assert cli("embed", "a.txt", "-o", kind, "--quiet").status == 0
            written = read.result(timeout=60)
    assert written.decode() == plain.out
    assert sorted(os.listdir()) == ["a.txt", "link", "pipe"]


def test_stdout_redirected_to_a_file_is_appended_to(shell, tmp_path):
    result = shell("echo one > a.txt; echo old > out; $LASTWORD embed a.txt -o /dev/stdout >> out")
    old, new = (tmp_path / "out").read_text().splitlines()
    assert (result.status, old, json.loads(new)["text"]) == (0, "old", "one")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "out"]


def test_a_stream_takes_json_lines_and_their_header(cli, tmp_path):
    Path("a.txt").write_text("one")
    os.mkfifo("p.npy")
    header, line = _lines_of(cli("embed", "a.txt", "-o", "/dev/stdout", "--header").out)
    assert (header.keys(), line["text"]) == ({"lastword"}, "one")
    assert cli("embed", "a.txt", "-o", "/dev/null", "--header").status == 0
    ranges = cli("embed", "a.txt", "-o", "/dev/null", "--save-ranges", "/dev/null")
    assert "no ranges to save" in ranges.err
    for name, style in (("p.npy", "npy"), ("/dev/null", "safetensors")):
        result = cli("embed", "a.txt", "-o", name, "--format", style)
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert f"{name}: {style} cannot be written to a stream; expected a file" in result.err


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


@pytest.mark.parametrize("ending", ["", ".jsonl", ".ndjson", ".JSONL"])
def test_json_lines_by_name(cli, ending):
    Path("a.txt").write_text("x")
    assert cli("embed", "a.txt", "-o", f"v{ending}").status == 0
    assert json.loads(Path(f"v{ending}").read_text())["text"] == "x"
    assert json.loads(Path(f"v{ending}.json").read_text()).keys() == METADATA


def test_any_ending_of_a_named_format(cli):
    Path("a.txt").write_text("x")
    assert cli("embed", "a.txt", "-o", "v.out", "--format", "jsonl").status == 0
    assert json.loads(Path("v.out").read_text())["text"] == "x"


def test_paths_that_are_not_utf8(cli):
    Path("a\udcff.txt").write_text("one\ntwo")
    assert cli("embed", "a\udcff.txt", "-o", "v\udcff.npy", "--save-ranges", "r\udcff").status == 0
    assert {"v\udcff.npy", "v\udcff.npy.json", "r\udcff"} < set(os.listdir())
    result = cli("search", "one", "a\udcff.txt", "--json")
    assert json.loads(result.out.splitlines()[0])["path"] == "a\\xff.txt"


def test_a_name_that_is_not_utf8_is_written_in_one_way(cli):
    os.mkdir("d")
    Path("d/a\udcff\udcfeé.txt").write_text("one\n\x1b[31m\n")
    Path("d/b\udcff.txt").write_bytes(b"\xff\ntwo\n")
    skip = ("--on-error", "skip", "--errors", "bad")
    shown = ["d/a\\xff\\xfeé.txt", "d/b\\xff.txt"]
    rows = [json.loads(line) for line in cli("embed", "d", *skip).out.splitlines()]
    assert {row["path"] for row in rows} == set(shown)
    assert json.loads(Path("bad").read_bytes())["path"] == shown[1]
    assert cli("embed", "d", *skip, "-o", "o.npy").status == 0
    rows = [json.loads(line) for line in Path("o.npy.rows.jsonl").read_bytes().splitlines()]
    assert {row["path"] for row in rows} == set(shown)
    hits = cli("search", "one", "d", *skip)
    assert "  d/a\\xff\\xfeé.txt:1  one\n" in hits.out
    assert "  d/a\\xff\\xfeé.txt:2  \\x1b[31m\n" in hits.out
    assert cli("embed", "d").err.startswith("lastword: d/b\\xff.txt:1: is not UTF-8")


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
    assert tuple(write.ELEMENT_TYPES) == postprocess.PRECISIONS


def test_the_benchmarks_offer_what_the_commands_do():
    assert QUANTIZE == options.QUANTIZE
