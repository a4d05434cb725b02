"""`--on-error skip` and blank texts: what is left out, what is said and listed, and that rows stay aligned."""

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest

from lastword.cli import read
from lastword.cli.main import main
from lastword.cli.read import lines

# Inputs with bad records in them: content, line and reason of each bad one, and the texts that are left.
JSONL = (
    b'{"text": "one"}\n{"text": 2}\n\n{"text": "three"\n{"txt": "four"}\n{"text": "\xff"}\n{"text": "six"}\n'
    b'{"text": "\\ud800"}\n{"text": "seven", "text": "again"}\n[1]\n{"text": "NOTOKENS"}\n{"text": "last"}'
)
CSV = b'n,text\n1,one\n2,two,3\n4,"multi\n\xffline"\n5,"a" b\n6,NOTOKENS\n7,"seven\nlines"\n8,"open\n9,nine\n10,ten\n'
CASES = {
    "a.txt": (
        b"NOTOKENS\none\n\xff\ntwo\nNOTOKENS\nNOTOKENS\nthree\n\xfe\xff",
        [(1, "no token"), (3, "UTF-8"), (5, "no token"), (6, "no token"), (8, "UTF-8")],
        ["one", "two", "three"],
    ),
    "a.jsonl": (
        JSONL,
        [
            (2, "wrong field"),
            (4, "JSON"),
            (5, "no field"),
            (6, "UTF-8"),
            (8, "lone surrogate"),
            (9, "twice"),
            (10, "object"),
            (11, "no token"),
        ],
        ["one", "six", "last"],
    ),
    "a.csv": (
        CSV,
        [
            (3, "wrong number"),
            (4, "UTF-8"),
            (6, "is not csv"),
            (7, "no token"),
            (10, "is not csv"),
        ],
        ["one", "seven\nlines", "nine", "ten"],  # what comes after a quote that stays open is read
    ),
    "none.txt": (b"one\ntwo", [], ["one", "two"]),
}


@pytest.mark.parametrize("file", CASES)
def test_bad_records_are_skipped_counted_and_listed(cli, file):
    cli("--version")  # enters the folder
    content, bad, texts = CASES[file]
    Path(file).write_bytes(content)
    result = cli("embed", file, "--on-error", "skip", "--errors", "bad.jsonl")
    assert result.status == 0, result.err
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [row["text"] for row in rows] == texts
    Path("good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    good = [json.loads(line) for line in cli("embed", "good.jsonl").out.splitlines()]
    assert [row["embedding"] for row in rows] == [row["embedding"] for row in good]
    listed = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
    listed.sort(key=lambda each: each["line"])
    assert [each["line"] for each in listed] == [line for line, _ in bad]
    for each, (_, reason) in zip(listed, bad, strict=True):
        assert each["path"] == file
        assert reason in each["error"]
    number = len(bad)
    notice = (
        f"{number} text{'s' if number > 1 else ''} left out because of an error; the first: {file}:"
    )
    assert (notice in result.err) == bool(bad)
    assert f"{len(texts)} text" in result.err.splitlines()[-1], "of the report"


def test_the_lines_align_the_rows(cli):
    content, _, texts = CASES["a.txt"]
    Path("a.txt").write_bytes(content)
    options = ("--on-error", "skip", "--errors", "bad.jsonl", "-o", "a.npy")
    assert cli("embed", "a.txt", *options).status == 0
    bad = {json.loads(line)["line"] for line in Path("bad.jsonl").read_text().splitlines()}
    kept = [line for i, line in enumerate(content.splitlines(), 1) if i not in bad]
    assert kept == [text.encode() for text in texts]
    assert np.load("a.npy").shape[0] == len(texts)
    assert json.loads(Path("a.npy.json").read_text())["texts"] == len(texts)


@pytest.mark.parametrize("command", [("embed",), ("search", "one")])
def test_by_default_the_first_bad_record_ends_the_run(cli, command):
    Path("a.jsonl").write_bytes(JSONL)
    for options in ((), ("--on-error", "stop")):
        result = cli(*command, "a.jsonl", *options)
        assert (result.status, result.out) == (2, "")
        assert result.err.startswith("lastword: a.jsonl:2: wrong field 'text'")


def test_search_skips_bad_records(cli):
    Path("a.jsonl").write_bytes(JSONL)
    result = cli("search", "six", "a.jsonl", "--on-error", "skip", "--top-k", "1")
    assert result.out == "  1  1.0000  a.jsonl:7  six\n"
    assert "8 texts left out because of an error; the first: a.jsonl:2: wrong field" in result.err


@pytest.mark.parametrize("command", [("embed",), ("search", "six")])
def test_a_loss_is_told_even_with_quiet_unless_it_is_listed(cli, command):
    Path("a.jsonl").write_bytes(JSONL)
    Path("b.txt").write_bytes("x".encode("utf-16"))
    options = (*command, "a.jsonl", "b.txt", "--on-error", "skip", "--quiet")
    said = cli(*options).err
    assert said.startswith(
        "lastword: 1 file and 8 texts left out because of an error; the first: a.jsonl:2: wrong"
    )
    assert said.count("\n") == 1
    assert cli(*options, "--errors", "bad").err == ""
    assert Path("bad").read_text().count("\n") == 9
    assert "still counted" in " ".join(cli(command[0], "--help").out.split())


def test_too_long_texts_and_taken_fields_are_skipped(cli, monkeypatch):
    Path("a.jsonl").write_text('{"text": "a"}\n{"text": "b", "embedding": 1}\n{"text": "c"}\n')
    result = cli("embed", "a.jsonl", "--on-error", "skip")
    assert result.out.count("\n") == 2
    assert "a.jsonl:2: already has a field 'embedding'" in result.err
    Path("long.txt").write_text("a\n" + "x" * 101 + "\nb")
    result = cli("embed", "long.txt", "--on-error", "skip", "--on-long", "error")
    assert result.out.count("\n") == 2
    assert "1 text left out because of an error; the first: long.txt:2: is too long" in result.err
    monkeypatch.setattr(lines, "MAX_RECORD", 20)
    Path("line.txt").write_text("a\n" + "x" * 101 + "\nb\n" + "y" * 30)
    result = cli("embed", "line.txt", "--on-error", "skip", "--errors", "bad")
    assert [json.loads(line)["text"] for line in result.out.splitlines()] == ["a", "b"]
    assert [json.loads(line)["line"] for line in Path("bad").read_text().splitlines()] == [2, 4]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"n,txt\n1,2\n", "a.csv:1: has no field 'text'"),
        ("a.jsonl", b"{}\n", "a.jsonl:1: has no field 'text'; got no fields. Name the field"),
        ("a.txt", "ab".encode("utf-16-le"), "a.txt:1: is not UTF-8; got UTF-16"),
    ],
)
def test_an_error_of_the_only_file_ends_the_run(cli, name, content, said):
    Path(name).write_bytes(content)
    for options in ((), ("--on-error", "skip")):
        result = cli("embed", name, *options)
        assert result.status == 2
        assert said in result.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--errors", "bad"), "--errors: lists skipped texts; got --on-error stop"),
        (("--on-error", "skip", "--errors", "a.txt"), "a.txt: would be overwritten"),
        (("--on-error", "skip", "--errors", "gone/bad"), "gone: no such folder"),
        (("--on-error", "report"), "--on-error: unknown; got 'report', expected stop or skip"),
    ],
)
@pytest.mark.parametrize("command", [("embed",), ("search", "q")])
def test_options_that_do_not_fit(cli, command, options, said):
    Path("a.txt").write_text("a")
    result = cli(*command, "a.txt", *options)
    assert (result.status, result.out) == (2, "")
    assert said in result.err


# Blank texts.

BLANK = {
    "b.txt": "one\n\n \t\n\u00a0\u3000\ntwo\n",
    "b.csv": 'n,text\n1,one\n2,\n3,"  "\n4,"\n"\n5,two\n',
    "b.jsonl": '{"text": "one"}\n{"text": ""}\n{"text": " "}\n{"text": "\\n"}\n{"text": "two"}\n',
}


def test_a_blank_line_of_a_table(cli):
    """It is an empty text of a single column, and no row of several columns."""
    Path("a.csv").write_text('\ntext\n\n\nx\n""\n')
    Path("b.csv").write_text("text,n\n\nx,1\n\n")
    rows = [json.loads(line) for line in cli("embed", "a.csv", "b.csv").out.splitlines()]
    found = [(row["path"], row["line"], row["text"]) for row in rows]
    assert found[:4] == [("a.csv", 3, ""), ("a.csv", 4, ""), ("a.csv", 5, "x"), ("a.csv", 6, "")]
    assert found[4:] == [("b.csv", 3, "x")]
    assert "3 blank texts embedded too" in cli("embed", "a.csv").err


@pytest.mark.parametrize("file", BLANK)
def test_blank_texts(cli, file):
    Path(file).write_text(BLANK[file], encoding="utf-8")
    kept = cli("embed", file)
    assert len(kept.out.splitlines()) == 5
    assert "3 blank texts embedded too; --skip-blank leaves them out" in kept.err
    dropped = cli("embed", file, "--skip-blank")
    assert [json.loads(line)["text"] for line in dropped.out.splitlines()] == ["one", "two"]
    assert "lastword: 3 blank texts skipped\n" in dropped.err
    found = cli("search", "one", file)
    assert len(found.out.splitlines()) == 2
    assert "lastword: 3 blank texts skipped\n" in found.err
    for command in (("embed",), ("search", "one")):
        assert cli(*command, file, "--quiet").err == ""


def test_blank_texts_have_no_pieces_as_the_help_says(cli):
    pytest.importorskip("semantic_text_splitter")
    Path("b.txt").write_text(BLANK["b.txt"], encoding="utf-8")
    result = cli("embed", "b.txt", "--chunk", "9")
    assert [json.loads(line)["text"] for line in result.out.splitlines()] == ["one", "two"]
    assert "lastword: 3 blank texts skipped\n" in result.err
    assert "With --chunk they are always left out" in " ".join(cli("embed", "--help").out.split())


def test_one_blank_text_and_none(cli):
    Path("a.txt").write_text("one\n\n")
    assert "1 blank text embedded too; --skip-blank leaves it out" in cli("embed", "a.txt").err
    assert "1 blank text skipped" in cli("search", "q", "a.txt").err
    Path("a.txt").write_text("one\n")
    assert "blank" not in cli("embed", "a.txt").err


# Progress.


def _drawn(result):
    return [line for line in result.err.replace("\r", "\n").splitlines() if "Embedding" in line]


@pytest.mark.parametrize("command", [("embed",), ("search", "one")])
def test_progress_is_in_bytes_where_they_are_known(cli, command, monkeypatch):
    monkeypatch.setattr("lastword.cli.console.shows_progress", lambda quiet: not quiet)
    Path("a.txt").write_text("text\n" * 1000)  # 5,000 bytes
    Path("b.csv").write_text("text\n" + '"two\nlines"\n' * 100)  # 1,205 bytes
    (*_, last) = _drawn(cli(*command, "a.txt", "b.csv"))
    assert "100%" in last
    assert " 6.21k/6.21k " in last
    assert "B/s" in last
    (*_, last) = _drawn(cli(*command, "-", stdin=b"text\n" * 1000))
    assert "5.00k/5.00k" in last, "stdin is a file here too"
    assert _drawn(cli(*command, "a.txt", "--quiet")) == []


def test_progress_of_a_pipe_is_in_texts(cli, monkeypatch):
    monkeypatch.setattr("lastword.cli.console.shows_progress", lambda quiet: not quiet)
    cli("--version")  # enters the folder
    reader, writer = os.pipe()
    os.write(writer, b"text\n" * 100)
    os.close(writer)
    with open(reader) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        (*_, last) = _drawn(cli("embed"))
    assert "100 texts [" in last


def test_bytes_never_go_back_and_end_at_the_total(cli, fake_class):
    from lastword.cli import stream

    cli("--version")  # enters the folder
    Path("a.txt").write_text("".join("x" * (i % 50) + "\n" for i in range(500)))
    inputs = read.sources(["a.txt"], None)
    meter, moves = read.Meter(inputs), []
    done = stream._Progress(moves.append, meter)
    total = 0
    for _ in read.read(inputs, read.Fields(), meter=meter):
        total += 1
        if total % 7 == 0:
            done.add(7, total)
    assert meter.total == Path("a.txt").stat().st_size
    done.add(total % 7, total)
    assert sum(moves) == meter.total
    assert min(moves) > 0


UNREADABLE = {
    "utf16.txt": ("second\nthird\n".encode("utf-16"), "utf16.txt:1: is not UTF-8; got UTF-16 text"),
    "packed.txt": (b"\x1f\x8b\x08\x00\nsecond\n", "packed.txt:1: is not UTF-8; got a gzip file"),
    "columns.csv": (b"id;note\n1;one\n", "columns.csv:1: has no field 'text'"),
}


@pytest.mark.parametrize("file", UNREADABLE)
def test_a_file_that_is_no_text_is_left_out_whole_if_there_are_others(cli, file):
    cli("--version")  # enters the folder
    content, error = UNREADABLE[file]
    Path(file).write_bytes(content)
    Path("good.txt").write_text("one\ntwo\n")
    Path("also.txt").write_text("one\ntwo\n")
    result = cli("embed", "good.txt", file, "also.txt", "--on-error", "skip")
    assert result.status == 0, result.err
    assert [json.loads(line)["text"] for line in result.out.splitlines()] == ["one", "two"] * 2
    assert f"1 file left out because of an error; the first: {error}" in result.err
    for options in (["good.txt", file], [file, "--on-error", "skip"]):
        result = cli("embed", *options)
        assert result.status == 2
        assert error in result.err


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("line", ['{"text": "x", "embedding": 1}', '{"text": "x y z"}', "no JSON"])
def test_a_refused_record_leaves_no_file_open(line, tmp_path, monkeypatch):
    """Not even until the garbage collector comes to it."""
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"text": "fine"}\n' + line + '\n{"text": "last"}\n')
    main(["embed", "a.jsonl", "--on-error", "skip", "--quiet", "-o", "warm.jsonl"])
    gc.collect()
    gc.disable()
    try:
        assert (
            main(["embed", "a.jsonl", "--max-length", "3", "--on-long", "error", "-o", "v.jsonl"])
            == 2
        )
        held = [
            os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
        ]
    finally:
        gc.enable()
    assert str(tmp_path / "a.jsonl") not in held
