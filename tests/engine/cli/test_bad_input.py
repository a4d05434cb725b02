"""Bad input: exit status 2, one line that names the place, no partial output, and the old output kept."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lastword.cli import read
from lastword.cli.read import lines
from lastword.errors import InputError

OLD = b"old output"
ROW = b'{"text": "fine"}\n'
DEEP = b'{"text": "x", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"


def _check(result, *expected, status=2):
    """Check that stderr is one line without a traceback and contains every expected part."""
    assert result.status == status
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("lastword: ")
    assert "Traceback" not in result.err
    for part in expected:
        assert part in lines[0]


def _in_file(name, content, *expected, options=()):
    return pytest.param({name: content}, [name, *options], expected)


# File name, content, and the parts that the one line must contain.
FILES = {
    "not-utf8": _in_file("a.txt", b"ok\nok\n\xff\xfe\n", "a.txt:3", "UTF-8", "0xff"),
    "latin1": _in_file(
        "a.txt",
        "ok\ncafé".encode("latin-1"),
        "a.txt:2: is not UTF-8; got byte 0xe9 (byte 4 of the line). "
        "If it is Latin-1, run iconv -f latin1 -t utf-8 a.txt > a.utf8.txt to convert it.",
    ),
    "windows-1252": _in_file(
        "a.txt",
        "Über 5 €".encode("cp1252"),
        "a.txt:1: is not UTF-8; got byte 0xdc (byte 1 of the line). "
        "If it is Windows-1252, run iconv -f cp1252 -t utf-8 a.txt > a.utf8.txt to convert it.",
    ),
    "latin1-with-a-control": _in_file("a.txt", b"\xc4\x81\xe9", "a.txt:1", "If it is Latin-1"),
    "latin1-after-a-mark": _in_file("a", b"\xef\xbb\xbf\xc3\xa9\xe9", "a:1", "byte 6 of the line"),
    "a-name-with-a-space": _in_file("a b", b"\xe9", "iconv -f latin1 -t utf-8 'a b' > 'a b.utf8'"),
    "no-text-at-all": _in_file("a", b"\x7fELF\0\xff", "a:1", "Name a file that holds text."),
    "utf16": _in_file(
        "utf16.txt", "ok\n".encode("utf-16"), "UTF-16 text", "utf16.txt > utf16.utf8.txt to"
    ),
    "utf16-big": _in_file("a.csv", "\ufeffok".encode("utf-16-be"), "a.csv:1", "UTF-16 text"),
    "utf16-without-mark": _in_file("a.txt", "ok\n€".encode("utf-16-le"), "a.txt:1", "UTF-16LE"),
    "utf16-big-without-mark": _in_file("a.csv", "ok\n€".encode("utf-16-be"), "a.csv:1", "UTF-16BE"),
    "utf32": _in_file("a.txt", "ok\n".encode("utf-32"), "a.txt:1", "UTF-32 text"),
    "gz-without-ending": _in_file(
        "a", b"\x1f\x8b\x08", "a:1", "a gzip file", "zcat", "--input-format txt"
    ),
    "zip-named-csv": _in_file(
        "a.csv", b"PK\x03\x04\x14\xff\n", "a.csv:1", "a zip file", "--input-format csv"
    ),
    "pdf-named-txt": _in_file("a.txt", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a.txt:2", "a PDF file"),
    "utf8-cut-short": _in_file("a.txt", "ok\n€".encode()[:-1], "a.txt:2", "0xe2"),
    "utf8-surrogate-bytes": _in_file("a.txt", b"\xed\xa0\x80", "a.txt:1", "0xed"),
    "utf8-late": _in_file("a.txt", b"x" * 9000 + b"\n" + b"y" * 9000 + b"\x80", "a.txt:2", "0x80"),
    "utf8-jsonl": _in_file("a.jsonl", ROW + b'{"text": "\xc3"}', "a.jsonl:2", "0xc3"),
    "utf8-csv": _in_file("a.csv", b"text\nok\n\xc3\n", "a.csv:3", "0xc3"),
    "json-broken": _in_file("a.jsonl", ROW + ROW + b'{"text": "x"', "a.jsonl:3", "not valid JSON"),
    "json-single-quotes": _in_file("a.jsonl", b"{'text': 'x'}", "a.jsonl:1", "not valid JSON"),
    "json-two-on-a-line": _in_file(
        "a.jsonl", b'{"text":"x"}{"text":"y"}', "a.jsonl:1", "something follows after the end"
    ),
    "json-control-character": _in_file(
        "a.jsonl",
        b'{"text": "\x01"}',
        "a.jsonl:1",
        "column 11: a control character that is not escaped",
    ),
    "json-key-twice": _in_file(
        "a.jsonl", ROW + b'{"text": "x", "text": "y"}', "a.jsonl:2", 'key "text" occurs twice'
    ),
    "json-other-key-twice": _in_file(
        "a.jsonl", b'{"text": "x", "a": {"b": 1, "b": 1}}', "a.jsonl:1", 'key "b" occurs twice'
    ),
    "json-lone-cr": _in_file(
        "a.jsonl", b'{"text": "x"}\r{"text": "y"}', "a.jsonl:1", "something follows after the end"
    ),
    "json-cr-in-text": _in_file("a.jsonl", b'{"text": "x\ry"}', "a.jsonl:1", "control character"),
    "json-other-space": _in_file("a.jsonl", ROW + b"\x0b\n", "a.jsonl:2", "not valid JSON"),
    "csv-lone-cr": _in_file("a.csv", b"text\rx\ry\r", "a.csv:1", "a lone \\r in a field", "\\n"),
    "only-half-a-mark": _in_file("a.txt", b"\xef\xbb", "a.txt:1", "0xef"),
    "json-list": _in_file("a.jsonl", ROW + b'["text"]', "a.jsonl:2", "a list", "object"),
    "json-string": _in_file("a.jsonl", b'"text"', "a.jsonl:1", 'got "text"', "object"),
    "json-null-row": _in_file("a.jsonl", ROW + b"null", "a.jsonl:2", "null", "object"),
    "json-pretty-printed": _in_file(
        "a.jsonl", b'{\n "text": "x"\n}', "a.jsonl:1", "not valid JSON"
    ),
    "json-nan": _in_file("a.jsonl", ROW + b'{"text": "x", "n": NaN}', "a.jsonl:2", "NaN"),
    "json-infinity": _in_file(
        "a.jsonl", b'{"text": "x", "n": -Infinity}', "a.jsonl:1", "-Infinity"
    ),
    "json-huge-integer": _in_file(
        "a.jsonl", b'{"text": "x", "n": ' + b"1" * 9999 + b"}", "a.jsonl:1"
    ),
    "json-deep": _in_file("a.jsonl", ROW + DEEP, "a.jsonl:2", "nested"),
    "json-lone-surrogate": _in_file(
        "a.jsonl", ROW + b'{"text": "x\\udc00y"}', "a.jsonl:2", "lone surrogate", "\\udc00"
    ),
    "json-high-surrogate": _in_file("a.jsonl", b'{"text": "\\ud83d"}', "a.jsonl:1", "\\ud83d"),
    "json-missing-field": _in_file(
        "a.jsonl",
        ROW + b'{"body": "x", "id": 1}',
        "a.jsonl:2",
        "'text'",
        "body, id",
        "--text-field",
    ),
    "json-empty-object": _in_file("a.jsonl", b"{}", "a.jsonl:1", "'text'", "no field"),
    "json-many-fields": _in_file(
        "a.jsonl", json.dumps({f"f{i}": i for i in range(9)}).encode(), "a.jsonl:1", "and 4 more"
    ),
    "json-number-text": _in_file("a.jsonl", b'{"text": 7}', "a.jsonl:1", "a number", "a string"),
    "json-null-text": _in_file("a.jsonl", b'{"text": null}', "a.jsonl:1", "null", "a string"),
    "json-list-text": _in_file("a.jsonl", b'{"text": ["x"]}', "a.jsonl:1", "a list", "a string"),
    "json-true-text": _in_file("a.jsonl", b'{"text": true}', "a.jsonl:1", "a boolean", "a string"),
    "vector-field-taken": _in_file(
        "a.jsonl", ROW + b'{"text": "x", "embedding": []}', "a.jsonl:2", "--vector-field"
    ),
    "csv-no-header": _in_file("a.csv", b"", "a.csv:1", "header"),
    "csv-missing-column": _in_file("a.csv", b"id,body\n1,x\n", "a.csv:1", "'text'", "got id, body"),
    "csv-semicolons": _in_file("a.csv", b"id;body\n1;x\n", "a.csv:1", "'text'", "id;body"),
    "csv-short-row": _in_file("a.csv", b"id,text\n1,x\n2\n", "a.csv:3", "got 1", "expected 2"),
    "csv-long-row": _in_file("a.csv", b'id,text\n1,"x\ny"\n2,x,z\n', "a.csv:4", "got 3"),
    "csv-open-quote": _in_file(
        "a.csv", b'text\nok\n"never closed\n', "a.csv:3", "not csv (a quote is not closed)"
    ),
    "csv-stray-quote": _in_file(
        "a.csv", b'text\n"a"b\n', "a.csv:2", "goes on after its closing quote"
    ),
    "csv-column-twice": _in_file("a.csv", b"text,text\nx,y\n", "a.csv:1", "same name", "text"),
    "tsv-short-row": _in_file("a.tsv", b"id\ttext\n1\n", "a.tsv:2", "expected 2"),
    "no-token": _in_file("a.txt", b"a\nb\nc\nd\nNOTOKENS\nf", "a.txt:5: gives no token"),
    "too-long": _in_file(
        "a.txt", b"a\n" + b"x" * 101, "a.txt:2: is too long", options=("--on-long", "error")
    ),
    "ending-json": _in_file("a.json", b"[]", "a.json", "jq"),
    "ending-parquet": _in_file("a.parquet", b"PAR1", "a.parquet: cannot be read as Parquet"),
    "ending-pdf": _in_file("a.PDF", b"%PDF", "a.PDF", ".txt"),
    "cut-gz": _in_file("a.txt.gz", b"\x1f\x8b", "a.txt.gz: cannot be unpacked as gzip", "after 0"),
    "no-gz": _in_file(
        "a.csv.gz", b"text\nx", "a.csv.gz: cannot be unpacked as gzip (Not a gzipped"
    ),
    "gz-whole-cut": _in_file(
        "a.md.gz", b"\x1f\x8b", "a.md.gz: cannot be unpacked as gzip", options=("--files",)
    ),
    "no-zst": _in_file("a.csv.zst", b"text\nx", "a.csv.zst: cannot be unpacked as zstd"),
    "ending-bz2": _in_file("a.ndjson.bz2", b"BZh", "bzcat", "--input-format jsonl"),
    "ending-json-gz": _in_file("a.json.gz", b"\x1f\x8b", "format .json", "Unpack it first.", "jq"),
    "ending-tar-gz": _in_file("a.tar.gz", b"\x1f\x8b", "format .tar", "Unpack it first."),
    "parquet-gz": _in_file(
        "a.parquet.gz", b"\x1f\x8b", "a.parquet.gz: compressed Parquet", "Unpack"
    ),
    "gz-records-whole": _in_file(
        "a.jsonl.gz", b"\x1f\x8b", "holds records, not one text", options=("--files",)
    ),
    "ending-7z": _in_file("a.7z", b"", "a.7z", "Unpack it first."),
    "gz-whole": _in_file(
        "a",
        b"\x1f\x8b\x08",
        "a gzip file",
        "zcat a | lastword embed - --files",
        options=("--files",),
    ),
    "ending-safetensors": _in_file("a.safetensors", b"", "a.safetensors", ".txt"),
    "gz-forced": _in_file(
        "a.gz", b"\x1f\x8b\x08", "a.gz: cannot be", "gzip", options=("--input-format", "txt")
    ),
    "missing-file": pytest.param({}, ["gone.txt"], ("gone.txt", "No such file")),
    "missing-second": _in_file("a.txt", b"x", "gone.txt", "No such file", options=("gone.txt",)),
    "folder-of-the-output": pytest.param({}, ["."], ("out.jsonl: would be overwritten",)),
    "under-a-file": _in_file("f", b"x", "f/a.txt", "Not a directory", options=("f/a.txt",)),
    "newline-in-name": pytest.param({}, ["a\nb.txt"], ("a\\nb.txt", "No such file")),
    "stdin-twice": pytest.param({}, ["-", "-"], ("- is given twice",)),
}


@pytest.mark.parametrize(("files", "arguments", "expected"), FILES.values(), ids=FILES.keys())
def test_bad_files(cli, files, arguments, expected):
    for name, content in files.items():
        Path(name).write_bytes(content)
    Path("out.jsonl").write_bytes(OLD)
    before = sorted(os.listdir())
    _check(cli("embed", *arguments, "-o", "out.jsonl"), *expected)
    assert Path("out.jsonl").read_bytes() == OLD
    assert sorted(os.listdir()) == before


def test_the_remedy_for_another_encoding_works(cli, shell):
    Path("a b.txt").write_bytes("café\nnaïve".encode("latin-1"))
    remedy = cli("embed", "a b.txt").err.partition("run ")[2].removesuffix(" to convert it.\n")
    assert shell(remedy).status == 0
    assert Path("a b.utf8.txt").read_text("utf-8") == "café\nnaïve"
    assert cli("embed", "a b.utf8.txt").status == 0
    bad = cli("embed", stdin="café".encode("latin-1"))
    _check(bad, "If it is Latin-1, run iconv -f latin1 -t utf-8 to convert it.")


@pytest.mark.parametrize("name", ["out.safetensors", "out.npy", "out.jsonl"])
def test_after_an_error_output_and_metadata_are_unchanged(cli, name):
    Path("a.txt").write_bytes(b"a\nb\nc\nd\nNOTOKENS\n")
    Path(name).write_bytes(OLD)
    metadata = b'{"space": 1, "run": 2, "fingerprints": 3, "lastword": 4}'
    Path(f"{name}.json").write_bytes(metadata)
    before = sorted(os.listdir())
    _check(cli("embed", "a.txt", "-o", name, "--save-ranges", "r.st"), "a.txt:5")
    assert Path(name).read_bytes() == OLD
    assert Path(f"{name}.json").read_bytes() == metadata
    assert sorted(os.listdir()) == before


# Arguments, and the parts that the one line must contain; a.txt and a folder `folder` exist.
USAGE = {
    "no-command": ([], ["COMMAND"]),
    "unknown-command": (["embde"], ["embde"]),
    "unknown-option": (["embed", "a.txt", "--modle", "x"], ["--modle"]),
    "abbreviated-option": (["embed", "a.txt", "--prec", "int8"], ["--prec"]),
    "option-without-value": (["embed", "a.txt", "--model"], ["--model"]),
    "bad-precision": (["embed", "a.txt", "--precision", "int4"], ["int4", "float32"]),
    "bad-format": (["embed", "a.txt", "--format", "orc"], ["orc", "jsonl"]),
    "parquet-to-a-file": (["embed", "a.txt", "--format", "parquet", "-o", "a"], ["is for jobs"]),
    "parquet-from-stdin": (["embed", "-", "--input-format", "parquet"], ["stdin", "a file"]),
    "dim-zero": (["embed", "a.txt", "--dim", "0"], ["--dim", "at least 1"]),
    "dim-word": (["embed", "a.txt", "--dim", "big"], ["--dim: not a whole number", "big"]),
    "dim-of-many-digits": (["embed", "a.txt", "--dim", "9" * 5000], ["--dim: not a whole number"]),
    "top-k-negative": (["search", "q", "a.txt", "--top-k", "-1"], ["--top-k"]),
    "search-no-query": (["search"], ["QUERY"]),
    "two-prompts": (["embed", "a.txt", "--prompt", "x", "--prompt-name", "y"], ["--prompt"]),
    "unknown-prompt": (["embed", "a.txt", "--prompt-name", "x"], ["'x'", "document, query"]),
    "npy-to-stdout": (["embed", "a.txt", "--format", "npy"], ["npy", "-o"]),
    "safetensors-to-stdout": (["embed", "a.txt", "--format", "safetensors"], ["-o"]),
    "header-beside-output": (
        ["embed", "a.txt", "--header", "-o", "v.jsonl"],
        ["--header: is for stdout", "-o v.jsonl", "v.jsonl.json"],
    ),
    "header-of-safetensors": (
        ["embed", "a.txt", "--header", "-o", "v.safetensors"],
        ["--header: is for stdout", "goes to v.safetensors."],
    ),
    "header-of-binary-to-stdout": (
        ["embed", "a.txt", "--header", "--format", "npy"],
        ["npy", "-o"],
    ),
    "uint8-without-ranges": (["embed", "a.txt", "--precision", "uint8"], ["--ranges"]),
    "ranges-for-float": (["embed", "a.txt", "--ranges", "r"], ["--ranges", "float32"]),
    "save-ranges-of-int8": (
        ["embed", "a.txt", "--save-ranges", "r", "--precision", "int8"],
        ["--save-ranges", "float32"],
    ),
    "vector-is-text": (["embed", "a.txt", "--vector-field", "text"], ["--vector-field"]),
    "vector-has-no-name": (
        ["embed", "a.txt", "--vector-field", "v", "-o", "a.npy"],
        ["--vector-field: npy has no names; got 'v'. Leave it out, or choose another --format."],
    ),
    "output-is-input": (
        ["embed", "a.txt", "--format", "jsonl", "-o", "a.txt"],
        ["a.txt", "overwritten"],
    ),
    "output-is-input-by-link": (
        ["embed", "a.txt", "--format", "jsonl", "-o", "folder/../a.txt"],
        ["overwritten"],
    ),
    "output-is-ranges": (
        ["embed", "a.txt", "--precision", "int8", "--ranges", "r.npy", "-o", "r.npy"],
        ["r.npy", "overwritten"],
    ),
    "report-is-recipe": (["merge", "recipe", "out", "--report", "recipe"], ["overwritten"]),
    "output-of-no-format": (["embed", "a.txt", "-o", "v.npz"], ["v.npz", ".npz", "--format"]),
    "output-of-an-input-format": (["embed", "a.txt", "-o", "v.CSV"], [".csv", ".safetensors"]),
    "output-is-metadata": (
        ["embed", "a.txt", "-o", "o", "--ranges", "o.json", "--precision", "int8"],
        ["o.json: would be overwritten"],
    ),
    "two-outputs-in-one": (["embed", "a.txt", "-o", "o", "--save-ranges", "o"], ["overwritten"]),
    "output-is-full": (["embed", "a.txt", "-o", "/dev/full"], ["/dev/full: cannot", "No space"]),
    "output-is-not-open": (["embed", "a.txt", "-o", "/dev/fd/999"], ["/dev/fd/999", "descriptor"]),
    "output-folder-missing": (
        ["embed", "a.txt", "-o", "gone/o"],
        ["gone: no such folder. Create it first"],
    ),
    "metadata-folder-missing": (["embed", "a.txt", "-o", "gone/o.npy"], ["gone: no such folder"]),
    "errors-folder-missing": (
        ["search", "q", "a.txt", "--on-error", "skip", "--errors", "gone/e"],
        ["gone: no such folder"],
    ),
    "output-folder-is-file": (
        ["embed", "a.txt", "-o", "a.txt/o"],
        ["a.txt: is not a folder. Name a folder."],
    ),
    "output-folder-closed": (["embed", "a.txt", "-o", "/proc/o"], ["/proc/o", "cannot be written"]),
    "output-name-too-long": (["embed", "a.txt", "-o", "o" * 300], ["too long"]),
    "ranges-missing": (
        ["embed", "a.txt", "--precision", "int8", "--ranges", "gone.st"],
        ["gone.st", "No such file"],
    ),
    "ranges-not-safetensors": (
        ["embed", "a.txt", "--precision", "int8", "--ranges", "a.txt"],
        ["a.txt", "not a safetensors file"],
    ),
    "ranges-in-a-folder": (
        ["embed", "a.txt", "--precision", "int8", "--ranges", "folder"],
        ["folder: cannot be a file of ranges", "made by --save-ranges"],
    ),
    "ranges-from-a-device": (
        ["embed", "a.txt", "--precision", "int8", "--ranges", "/dev/zero"],
        ["/dev/zero: cannot be a file of ranges", "a folder, device or pipe"],
    ),
    "ranges-of-one-text": (["embed", "a.txt", "--save-ranges", "r"], ["r: no ranges", "equal"]),
    "info-two-models": (["info", "a", "--model", "b"], ["twice"]),
    "info-extra": (["info", "a", "b"], ["b"]),
    "model-empty": (["embed", "a.txt", "--model", ""], ["--model", "empty", "Hugging Face id"]),
    "info-empty": (["info", ""], ["MODEL", "empty"]),
    "verify-empty": (["verify", "--model", ""], ["--model", "empty"]),
    "as-empty": (["verify", "--as", ""], ["--as", "empty", "Hugging Face id"]),
    "revision-empty": (["embed", "a.txt", "--revision", ""], ["--revision", "empty", "branch"]),
    "model-not-utf8": (["embed", "a.txt", "--model", "m\udcff"], ["--model: not valid UTF-8 text"]),
    "model-argument-not-utf8": (["info", "m\udcff"], ["MODEL: not valid UTF-8 text"]),
    "file-not-utf8": (["embed", "gone\udcff.txt"], ["gone\\xff.txt: No such file"]),
    "output-not-utf8": (["embed", "a.txt", "-o", "v\udcff.npz"], ["v\\xff.npz: unsupported"]),
    "revision-not-utf8": (["embed", "a.txt", "--revision", "\udcff"], ["--revision", "UTF-8"]),
    "convert-empty": (["convert", "", "out"], ["MODEL", "empty"]),
    "file-empty": (["embed", ""], ["FILE: an empty argument"]),
    "output-empty": (["embed", "a.txt", "-o", ""], ["-o/--output: an empty argument"]),
    "ranges-empty": (["embed", "a.txt", "--ranges", ""], ["--ranges: an empty argument"]),
    "prompt-not-utf8": (["embed", "a.txt", "--prompt", "\udcff"], ["--prompt", "\\udcff", "UTF-8"]),
    "field-not-utf8": (["embed", "a.txt", "--vector-field", "x\udcff"], ["--vector-field"]),
    "query-not-utf8": (["search", "caf\udce9", "a.txt"], ["QUERY", "caf\\udce9"]),
    "command-not-utf8": (["\udcff"], ["COMMAND"]),
    "bags-of-zero": (
        ["bags", "a.txt", "--ratios", "0", "--seed", "1", "-o", "p.json"],
        ['--ratios: out of range; got "0"', "percentage"],
    ),
    "old-ratio-of-zero": (
        ["bags", "a.txt", "--ratios", "9", "--old-ratio", "0", "--seed", "1", "-o", "p.json"],
        ['--old-ratio: out of range; got "0"', "percentage"],
    ),
    "file-named-as-an-argument": (["embed", "prompt"], ["prompt: No such file"]),
    "check-unknown": (["verify", "--accept", "speed"], ["--accept: no such check", "'speed'"]),
}


@pytest.mark.parametrize(("arguments", "expected"), USAGE.values(), ids=USAGE.keys())
def test_bad_usage(cli, arguments, expected):
    Path("a.txt").write_text("x")
    Path("folder").mkdir()
    _check(cli(*arguments), *expected)
    assert sorted(os.listdir()) == ["a.txt", "folder"]
    assert Path("a.txt").read_text() == "x"


RANGES = {
    "other-name": ({"range": torch.tensor([[0.0] * 8, [1.0] * 8])}, None, "no tensor 'ranges'"),
    "other-dim": ({"ranges": torch.tensor([[0.0] * 4, [1.0] * 4])}, None, "got [2, 4] float32"),
    "other-dtype": ({"ranges": torch.zeros(2, 8, dtype=torch.int8)}, None, "got [2, 8] int8"),
    "not-finite": ({"ranges": torch.full((2, 8), torch.nan)}, None, "not finite"),
    "crossed": ({"ranges": torch.tensor([[1.0] * 8, [0.0] * 8])}, None, "low >= high"),
    "other-space": (
        {"ranges": torch.tensor([[0.0] * 8, [1.0] * 8])},
        {"space": "other", "fingerprints": "2"},
        "got space other, expected space0",
    ),
    "older": (
        {"ranges": torch.tensor([[0.0] * 8, [1.0] * 8])},
        {"space": "space0", "lastword": "0.1.0"},
        "r.st: written by an older lastword. Make the file again with --save-ranges.",
    ),
    "of-other-fingerprints": (
        {"ranges": torch.tensor([[0.0] * 8, [1.0] * 8])},
        {"space": "space0", "fingerprints": "1"},
        "written by an older lastword",
    ),
}


@pytest.mark.parametrize(("tensors", "metadata", "expected"), RANGES.values(), ids=RANGES.keys())
def test_bad_ranges(cli, tensors, metadata, expected):
    cli("--version")
    Path("a.txt").write_text("x")
    save_file(tensors, "r.st", metadata)
    result = cli("embed", "a.txt", "--precision", "uint8", "--ranges", "r.st", "-o", "out")
    _check(result, "r.st", expected)
    assert not Path("out").exists()


RECORDS = {
    "a.txt": b"fits\n" + b"x" * 10,
    "a.jsonl": b'{"text": "x"}\n{"text": "' + b"x" * 50 + b'"}',
    "a.csv": b"text\n" + b'"a\n",' * 20,
    "b.csv": b'text\n"never closed\n' + b"x\n" * 20,
    "c.csv": b"text\n" + b"x" * 50,
}


@pytest.mark.parametrize(("name", "content"), RECORDS.items())
def test_a_record_without_an_end_is_refused(cli, monkeypatch, name, content):
    monkeypatch.setattr(lines, "MAX_RECORD", 9 if name == "a.txt" else 16)
    Path(name).write_bytes(content)
    _check(cli("embed", name), f"{name}:2: is too long", "expected at most")


def test_a_device_without_an_end_is_refused(cli, monkeypatch):
    assert read.MAX_RECORD == 33_554_432, "the help of `embed` says so"
    monkeypatch.setattr(lines, "MAX_RECORD", 10**6)
    _check(cli("embed", "/dev/zero"), "/dev/zero:1: is too long", "at most 1,000,000")


def test_ranges_are_read_from_files_of_bounded_size(cli):
    Path("a.txt").write_text("x")
    os.mkfifo("pipe")
    with open("large", "wb") as file:
        file.truncate(1 << 40)
    for name, got in (("pipe", "a folder, device or pipe"), ("large", "1,099,511,627,776 bytes")):
        result = cli("embed", "a.txt", "--precision", "int8", "--ranges", name)
        _check(result, f"{name}: cannot be a file of ranges; got {got}")


def test_metadata_does_not_overwrite_an_input(cli):
    Path("v.json").write_text("x")
    _check(
        cli("embed", "v.json", "--input-format", "txt", "-o", "v"), "v.json: would be overwritten"
    )
    assert Path("v.json").read_text() == "x"


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("txt", b"ok\n\xff\n", "stdin:2"),
        ("jsonl", b"{", "stdin:1"),
        ("csv", b"id\n1\n", "stdin:1"),
        ("tsv", b"text\n", "stdin: contains no text."),
    ],
)
def test_bad_stdin(cli, kind, content, expected):
    result = cli("embed", "-", "--input-format", kind, "--quiet", stdin=content)
    _check(result, expected)


# An input without texts: the arguments, and the place that the message names.
NO_TEXTS = {
    "stdin": ([], "stdin: contains no text."),
    "dash": (["-"], "stdin: contains no text."),
    "whole stdin": (["-", "--files"], "stdin: contains no text."),
    "file": (["empty.txt"], "empty.txt: contains no text."),
    "files": (["empty.txt", "empty.csv"], "2 inputs: contain no text."),
    "folder": (["folder"], "folder: contains no text."),
    "pattern": (["folder/*.txt"], "folder/*.txt: contains no text."),
    "lines": (["empty.jsonl"], "empty.jsonl: contains no text."),
    "blank": (["blank.txt"], "blank.txt: contains no text; got only blank texts."),
    "whole": (["blank.txt", "--files"], "blank.txt: contains no text; got only blank texts."),
}


@pytest.mark.parametrize("case", NO_TEXTS)
@pytest.mark.parametrize(
    "command", [("embed", "--skip-blank"), ("search", "q"), ("embed", "-o", "o")]
)
def test_an_input_without_texts_is_refused(cli, command, case):
    arguments, line = NO_TEXTS[case]
    if "blank.txt" in arguments and "-o" in command:
        command = (*command, "--skip-blank")
    cli("--version")  # enters the folder
    os.mkdir("folder")
    for name, content in {
        "empty.txt": "",
        "empty.csv": "text\n",
        "empty.jsonl": "\n\n",
        "blank.txt": "\n \n",
        "folder/a.txt": "",
    }.items():
        Path(name).write_text(content)
    result = cli(*command, *arguments, "--quiet", stdin=b"")
    assert result == (2, "", f"lastword: {line}\n")
    assert not Path("o").exists()


@pytest.mark.parametrize("content", ["", "text\n"])
def test_verify_needs_texts_where_a_file_of_them_is_named(cli, content):
    Path("empty.csv").write_text(content)
    result = cli("verify", "--texts", "empty.csv")
    _check(result, "empty.csv" if not content else "--texts: contain no text; got empty.csv")


def test_verify_leaves_out_records_without_a_text(cli, monkeypatch):
    given = []

    def verify(*_, texts, **__):
        given.extend(texts)
        raise InputError("verify", "stops here")

    monkeypatch.setattr("lastword.verify.verify", verify)
    Path("a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": NaN}\n{"text": "two"}\n')
    error = cli("verify", "--texts", "a.jsonl", "--quiet").err
    assert given == ["one", "two"]
    assert (
        "2 texts left out because of an error; the first: a.jsonl:2: wrong field 'text'; got null"
        in error
    )
    Path("b.jsonl").write_text('{"text": null}\n')
    _check(cli("verify", "--texts", "b.jsonl"), "contain no text", "The first: b.jsonl:1", "null")


# Outputs whose extension names another format: the arguments and what the one line names.
CONTRADICTIONS = {
    "json": (["-o", "a.json"], ["a.json: unsupported", ".json", "JSON lines are named .jsonl"]),
    "npy": (["-o", "a.npy", "--format", "jsonl"], ["a.npy", "--format jsonl", "expected .jsonl"]),
    "lines": (["-o", "a.jsonl", "--format", "npy"], ["a.jsonl", "--format npy", "expected .npy"]),
    "tensors": (
        ["-o", "a.safetensors", "--format", "npy"],
        [".safetensors with --format npy", "expected .npy"],
    ),
    "text": (["-o", "a.TXT", "--format", "npy"], [".txt with --format npy", "expected .npy"]),
    "packed": (
        ["-o", "a.jsonl.gz", "--format", "jsonl"],
        [".gz with --format jsonl", "expected .jsonl"],
    ),
    "packed by default": (
        ["-o", "a.jsonl.gz"],
        ["unsupported output format .gz", "one of these extensions."],
    ),
    "text for ranges": (
        ["-o", "a.npy", "--save-ranges", "a.txt"],
        [".txt with --save-ranges", "expected .safetensors"],
    ),
    "table": (["-o", "a.csv", "--format", "jsonl"], [".csv with --format jsonl"]),
    "ranges": (["--save-ranges", "r.json"], ["r.json", "--save-ranges", "expected .safetensors"]),
    "errors": (
        ["--on-error", "skip", "--errors", "e.npy"],
        ["e.npy", "--errors", "expected .jsonl"],
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_an_extension_of_another_format_is_refused(cli, case):
    arguments, expected = CONTRADICTIONS[case]
    Path("a.txt").write_text("x")
    _check(cli("embed", "a.txt", *arguments), *expected)
    assert os.listdir() == ["a.txt"]


def test_a_merge_report_is_json_lines(cli):
    Path("r.yaml").write_text("{}")
    _check(cli("merge", "r.yaml", "out", "--report", "t.csv"), "t.csv", "--report", ".jsonl")


@pytest.mark.parametrize("extension", [".json", ".JSON", ".x", "", ".ndjson"])
def test_a_format_may_be_named_where_the_extension_allows_it(cli, extension):
    Path("a.txt").write_text("x")
    assert cli("embed", "a.txt", "-o", f"v{extension}", "--format", "jsonl").status == 0
    assert json.loads(Path(f"v{extension}").read_text())["text"] == "x"


# Options with a value that cannot be meant: the arguments and the whole line but for the command's help.
VALUES = {
    "choice": (
        ["embed", "--precision", "int7"],
        "--precision: unknown; got 'int7', expected float32, float16, int8, uint8, binary or ubinary.",
    ),
    "two-choices": (
        ["embed", "--on-long", ""],
        "--on-long: unknown; got '', expected cut or error.",
    ),
    "no-value": (["embed", "--dim"], "--dim: needs a value."),
    "no-values": (["bench", "kernels", "--op"], "--op: needs at least one value."),
    "a-value": (["embed", "--quiet=yes"], "--quiet: takes no value; got 'yes'."),
    "both": (
        ["embed", "--prompt", "x", "--prompt-name", "y"],
        "--prompt-name: cannot be combined with --prompt.",
    ),
    "missing": (["merge"], "CONFIG, OUT: missing."),
    "missing-one": (["convert", "m"], "OUT: missing."),
    "missing-options": (["bags", "a.txt", "--seed", "1"], "--ratios, -o/--output: missing."),
    "command": ([], "COMMAND: missing."),
    "benchmark": (["bench"], "BENCHMARK: missing."),
    "unknown-benchmark": (
        ["bench", "x"],
        "BENCHMARK: unknown; got 'x', expected kernels, peers, model, serve or bulk.",
    ),
    "text-field": (["embed", "--text-field", ""], "--text-field: an empty name; got ''."),
    "vector-field": (["embed", "--vector-field", ""], "--vector-field: an empty name; got ''."),
    "id-field": (["bags", "--id-field", ""], "--id-field: an empty name; got ''."),
    "query-field": (["search", "--query-field", ""], "--query-field: an empty name; got ''."),
    "tasks": (["eval", "--tasks", "STS12,"], "--tasks: an empty name; got 'STS12,'."),
    "benchmarks": (["eval", "--benchmark", ""], "--benchmark: an empty name; got ''."),
    "rounds": (
        ["bench", "model", "--rounds", "x"],
        "--rounds: not a whole number of at least 1; got 'x'.",
    ),
    "plot": (["bench", "model", "--plot", ""], "--plot: an empty argument; got ''."),
    "figures": (
        ["bench", "model", "--json", "x.json"],
        "--json: not a name that ends in .jsonl; got 'x.json'.",
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be_meant(cli, case):
    arguments, line = VALUES[case]
    result = cli(*arguments)
    words = " ".join(["lastword", *arguments[: 1 + (arguments[:1] == ["bench"])]])
    if case in ("benchmark", "unknown-benchmark"):
        words = "lastword bench"
    assert result == (2, "", f"lastword: {line} See {words} --help.\n")


def test_a_huge_value_is_cut(cli):
    err = cli("embed", "--dim", "9" * 5000).err
    assert len(err) < 200
    assert "…" in err


def test_a_query_field_is_for_a_file_of_queries(cli):
    _check(cli("search", "q", "--query-field", "ask"), "--query-field: is for --queries. Name")


def test_search_names_the_place_too(cli):
    Path("a.txt").write_bytes(b"a\nNOTOKENS\n")
    _check(cli("search", "q", "a.txt"), "a.txt:2: gives no token")
    _check(cli("search", "NOTOKENS", "a.txt"), "QUERY: gives no token")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(cli):
    Path("a.txt").write_text("x")
    os.chmod("a.txt", 0)
    _check(cli("embed", "a.txt"), "a.txt", "permission denied")
    os.mkdir("closed", 0o500)
    Path("b.txt").write_text("x")
    _check(cli("embed", "b.txt", "-o", "closed/o"), "closed/o", "Permission denied")
