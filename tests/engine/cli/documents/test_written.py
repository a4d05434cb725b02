"""What lastword itself wrote is no input of a folder or pattern; a run given again replaces its own outputs."""

import json
import os
from pathlib import Path

import pytest

from lastword.cli.documents.written import is_by_lastword


@pytest.fixture
def texts(cli):
    cli("--version")  # enters the folder
    Path("docs/deep").mkdir(parents=True)
    Path("docs/a.txt").write_text("one\ntwo\n")
    Path("docs/deep/b.jsonl").write_text('{"text": "three"}\n{"n": 1, "text": "four"}\n')
    return cli


def _found(result):
    return [json.loads(line)["text"] for line in result.out.splitlines()]


# The options of a run whose output is in the folder that it reads, and the number of files that it writes.
RUNS = {
    "rows": (["-o", "docs/v.npy"], 3),
    "pieces": (["--chunk", "9", "-o", "docs/v.npy"], 3),
    "tensors": (["-o", "docs/deep/v.safetensors"], 2),
    "lines": (["-o", "docs/v.jsonl"], 2),
    "lines of another name": (["-o", "docs/v.txt", "--format", "jsonl"], 2),
    "ranges": (["-o", "docs/v.npy", "--save-ranges", "docs/r.safetensors"], 4),
    "errors": (["-o", "docs/v.npy", "--on-error", "skip", "--errors", "docs/bad.jsonl"], 4),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_given_again_replaces_its_own_files(texts, name):
    options, files = RUNS[name]
    Path("docs/c.txt").write_bytes(b"NOTOKENS\n" if name == "errors" else b"five\n")
    first = texts("embed", "docs", *options)
    written = {path: path.read_bytes() for path in Path("docs").rglob("*") if path.is_file()}
    again = texts("embed", "docs", *options)
    assert (first.status, again.status) == (0, 0), again.err
    assert written == {
        path: path.read_bytes() for path in Path("docs").rglob("*") if path.is_file()
    }
    # the list of errors is removed before the folder is read
    left = files - (name == "errors")
    assert (
        f"lastword: skipped {left} files that look like lastword's own output (name a file to read it)\n"
        in again.err
    )
    assert len(written) == 3 + files


@pytest.mark.parametrize("given", ["docs", "docs/**/*.jsonl", "docs/**"])
def test_they_are_left_out_of_folders_and_patterns(texts, given):
    plain = _found(texts("embed", given, "--quiet"))
    for out in ("docs/v.jsonl", "docs/v.npy", "docs/deep/v.safetensors"):
        assert texts("embed", "docs/a.txt", "docs/deep", "-o", out).status == 0
    header = texts("embed", "docs/a.txt", "--header").out
    Path("docs/header.jsonl").write_text(header)
    skip = ("--on-error", "skip", "--errors", "docs/bad.jsonl")
    Path("bad.txt").write_bytes(b"one\n\xff\n")
    assert texts("embed", "bad.txt", *skip).status == 0
    result = texts("embed", given)
    assert _found(result) == plain
    assert "files that look like lastword's own output (name a file to read it)\n" in result.err
    hits = texts("search", "three", given, "--json").out.splitlines()
    assert [json.loads(hit)["text"] for hit in hits].count("three") == 1


def test_named_directly_they_are_read(texts):
    assert texts("embed", "docs/a.txt", "-o", "docs/v.jsonl").status == 0
    assert _found(texts("embed", "docs/v.jsonl", "--vector-field", "again")) == ["one", "two"]
    found = texts("search", "two", "docs/v.jsonl", "--top-k", "1", "--texts")
    assert found.out.endswith("v.jsonl:2  two\n")


def test_links_to_them_are_left_out_too(texts):
    os.mkdir("out")
    Path("out/old.jsonl").write_text("{}\n")
    os.symlink("../out/old.jsonl", "docs/named.jsonl")  # its metadata is beside the link
    for out in ("out/v.jsonl", "docs/named.jsonl"):
        assert texts("embed", "docs/a.txt", "-o", out).status == 0
    os.symlink("../out/v.jsonl", "docs/link.jsonl")
    result = texts("embed", "docs")
    assert len(_found(result)) == 4
    assert (
        "skipped 3 files that look like lastword's own output (name a file to read it)"
        in result.err
    )


def test_only_what_lastword_wrote_is_left_out(texts):
    """Names and beginnings like those of its own files are not enough."""
    mine = {
        "docs/x.rows.jsonl": '{"text": "x"}\n',
        "docs/y.jsonl": '{"text": "y"}\n',
        "docs/y.jsonl.json": '{"space": "mine"}',
        "docs/z.jsonl": '{"lastword": "z", "text": "z"}\n',
        "docs/e.jsonl": '{"error": "e", "text": "w"}\n',
        "docs/broken.txt": "{\n",
        "docs/empty.txt": "",
    }
    for name, content in mine.items():
        Path(name).write_text(content)
        assert not is_by_lastword(name)
    assert {"x", "y", "z", "w", "{"} < set(_found(texts("embed", "docs")))
    assert not is_by_lastword("gone")


def test_a_folder_with_nothing_else_says_so(texts):
    os.mkdir("out")
    assert texts("embed", "docs", "-o", "out/v.npy").status == 0
    for given in ("out", "out/*"):
        error = texts("embed", given).err
        assert (
            "got only 3 files that look like lastword's own output (name a file to read it)"
            in error
        )


@pytest.mark.parametrize(
    "redirection", ["> docs/all.jsonl", ">> docs/all.jsonl", "2> docs/log.txt"]
)
def test_the_file_that_gets_the_output_is_left_out(texts, shell, redirection):
    Path("docs/all.jsonl").write_text('{"text": "old"}\n')
    command = f"timeout 60 $LASTWORD embed docs/a.txt docs/deep docs {redirection}"
    done = shell(command)
    assert done.status == 0
    out = done.out or Path("docs/all.jsonl").read_text()
    expected = {"one": 1, "three": 1, "old": redirection != "> docs/all.jsonl"}
    texts_of = [json.loads(line)["text"] for line in out.splitlines()]
    assert {text: texts_of.count(text) for text in expected} == expected


@pytest.mark.parametrize("redirection", ["> docs/a.txt", ">> docs/a.txt"])
def test_a_file_that_would_grow_while_it_is_read_is_refused(texts, shell, redirection):
    done = shell(f"timeout 60 $LASTWORD embed docs/a.txt {redirection}")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "lastword: docs/a.txt: is an input and receives the output. Name another file with -o.\n"
    )
    assert shell("$LASTWORD search three docs/deep/b.jsonl >> docs/deep/b.jsonl").status == 0


def test_an_input_is_not_overwritten_and_the_message_says_why(texts):
    Path("docs/mine.jsonl").write_text('{"text": "mine"}\n')
    before = Path("docs/mine.jsonl").read_bytes()
    for given in ("docs", "docs/mine.jsonl", "docs/*.jsonl"):
        assert texts("embed", given, "-o", "docs/mine.jsonl").err == (
            "lastword: docs/mine.jsonl: would be overwritten; expected a file that is not one of the inputs. "
            "Name another output file.\n"
        )
        assert Path("docs/mine.jsonl").read_bytes() == before
    twice = texts("embed", "docs/a.txt", "-o", "v", "--save-ranges", "v").err
    assert "v: would be overwritten; expected a file for each output." in twice


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [
        (["--on-error", "skip", "--errors", "mine", "-o", "v.npy"], "mine"),
        (["--on-error", "skip", "--errors", "mine.jsonl", "-o", "v.npy"], "mine.jsonl"),
        (["--save-ranges", "mine.old", "-o", "v.npy"], "mine.old"),
        (["-o", "v.npy"], "v.npy.json"),
        (["--files", "-o", "v.npy"], "v.npy.rows.jsonl"),
    ],
)
def test_files_of_others_are_not_replaced(cli, arguments, lost):
    Path("a.txt").write_text("one text\nanother\n")
    Path(lost).write_text('{"path": 1}\n')
    result = cli("embed", "a.txt", *arguments)
    assert result.status == 2
    assert result.err == (
        f"lastword: {lost}: would be replaced; got a file that lastword did not write, expected a new file, or one of "
        "an earlier run. Move it away, or name another output.\n"
    )
    assert Path(lost).read_text() == '{"path": 1}\n'
    assert not Path("v.npy").exists()
    Path(lost).write_text("")
    for _ in range(2):  # new, then its own
        assert cli("embed", "a.txt", *arguments).status == 0


def test_rows_of_others_are_not_removed(cli):
    Path("a.txt").write_text("one text\n")
    Path("v.npy.rows.jsonl").write_text("mine\n")
    assert cli("embed", "a.txt", "-o", "v.npy").status == 0
    assert Path("v.npy.rows.jsonl").read_text() == "mine\n"
