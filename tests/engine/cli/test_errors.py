"""The error messages of commands, as whole lines; errors that are bugs are not hidden."""

from pathlib import Path

import pytest
import torch

from lastword.cli.commands import convert, embed
from lastword.cli.options import in_option_words
from lastword.errors import ConfigError, DeviceError, InputError, LastwordWarning

ROW = b'{"text": "fine"}\n'

# Files, arguments and the whole line.
LINES = {
    "text": (
        {"a.txt": b"a\nb\nc\nd\nNOTOKENS\nf"},
        ["embed", "a.txt"],
        "a.txt:5: gives no token.",
    ),
    "bytes": (
        {"a.txt": b"ok\n\xff\n"},
        ["embed", "a.txt"],
        (
            "a.txt:2: is not UTF-8; got byte 0xff (byte 1 of the line). "
            "If it is Latin-1, run iconv -f latin1 -t utf-8 a.txt > a.utf8.txt to convert it."
        ),
    ),
    "json": (
        {"a.jsonl": ROW + b'{"text": NaN}\n'},
        ["embed", "a.jsonl"],
        "a.jsonl:2: not valid JSON (it holds NaN).",
    ),
    "field": (
        {"a.jsonl": ROW + b'{"body": "x", "id": 1}\n'},
        ["embed", "a.jsonl"],
        (
            "a.jsonl:2: has no field 'text'; got body, id. "
            "Name the field that holds the text with --text-field."
        ),
    ),
    "row": (
        {"a.csv": b"id,text\n1,x\n2\n"},
        ["embed", "a.csv"],
        "a.csv:3: wrong number of fields; got 1, expected 2, as in the header.",
    ),
    "file": ({}, ["embed", "gone.txt"], "gone.txt: No such file or directory."),
    "argument": (
        {"a.txt": b"x"},
        ["embed", "a.txt", "--dim", "0"],
        "--dim: not a whole number of at least 1; got '0'. See lastword embed --help.",
    ),
    "option": (
        {"a.txt": b"x"},
        ["embed", "a.txt", "--prompt-name", "x"],
        "--prompt-name: unknown name; got 'x', expected document, query.",
    ),
}


@pytest.mark.parametrize(("files", "arguments", "line"), LINES.values(), ids=LINES.keys())
def test_lines(cli, files, arguments, line):
    cli("--version")  # enters the folder
    for name, content in files.items():
        Path(name).write_bytes(content)
    status, _, err = cli(*arguments)
    assert (status, err) == (2, f"lastword: {line}\n")


@pytest.mark.parametrize("kind", [ConfigError, DeviceError, LastwordWarning])
def test_messages_name_the_option_instead_of_the_argument(kind):
    problem = kind("truncate_dim", "out of range", got="65", expected="1 to 64")
    assert in_option_words(problem) == "--dim: out of range; got 65, expected 1 to 64."
    assert problem.where == "--dim"
    assert in_option_words(kind("folder: truncate_dim", "x")) == "folder: truncate_dim: x."


def test_a_file_may_have_the_name_of_an_argument():
    assert in_option_words(InputError("ranges", "has no tensor")) == "ranges: has no tensor."


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (
            embed,
            ["embed", "a.txt"],
            "embed: out of memory. Lower --max-batch-tokens or --max-length.",
        ),
        (convert, ["convert", "m", "out"], "convert: out of memory."),
    ],
)
@pytest.mark.parametrize("error", [MemoryError, None], ids=["python", "torch"])
def test_no_memory(cli, monkeypatch, command, arguments, expected, error):
    def run(args):
        if error is None:
            torch.empty(1 << 60)
        raise error

    monkeypatch.setattr(command, "run", run)
    assert cli(*arguments) == (2, "", f"lastword: {expected}\n")


def test_other_errors_are_not_hidden(cli, monkeypatch):
    def run(args):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(embed, "run", run)
    with pytest.raises(RuntimeError, match="a mistake"):
        cli("embed", "a.txt")
