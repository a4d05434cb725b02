"""The error messages of commands, as whole lines; errors that are bugs are not hidden."""

import ast
import re
from pathlib import Path

import pytest
import torch
from helpers.messages import one_line
from helpers.project import ROOT

from lastword.cli import options
from lastword.cli.commands import convert, embed
from lastword.cli.options import OPTION_OF, in_option_words
from lastword.cli.parser import Parser
from lastword.encode_options import EncodeKwargs
from lastword.errors import ConfigError, DeviceError, InputError, LastwordWarning
from lastword.model_info import HubOptions, ModelKwargs

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
        "a.jsonl:2: not valid JSON (it contains NaN). JSON has no such number: write null instead.",
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


# Words that begin with a dash: what is said of them.
DASHES = {
    "a file": (["embed", "-dash.txt"], "got -dash.txt. If the file -dash.txt is meant, write ./-dash.txt."),
    "a file of a command": (["info", "-a$b"], "If the file -a$b is meant, write './-a$b'."),
    "instead of an argument": (["merge", "-dash.txt", "out"], "If the file -dash.txt is meant, write ./-dash.txt."),
    "an output": (["embed", "a.txt", "-o", "-x.npy"], "needs a value. If -x.npy is its value, write -o=-x.npy."),
    "an input of an option": (["search", "a.txt", "--queries", "-dash.txt"], "If the file -dash.txt is meant, write"),
    "a query": (["search", "-5C", "a.txt"], "got -5C. See lastword search --help. A query that begins with - comes"),
    "an option without a command": (["--versoin"], "arguments: unknown; got --versoin. Did you mean --version? See"),
    "a letter without a command": (["-V"], "arguments: unknown; got -V. See lastword --help."),
    "a command": (["serch", "q"], "bench, merge, convert or bags. Did you mean search? See lastword --help."),
    "a choice": (["embed", "--precision", "int7"], "uint8, binary or ubinary. See lastword embed --help."),
    "an option with a value": (["embed", "--chnk=5"], "got --chnk=5. Did you mean --chunk? See lastword embed --help."),
    "a model's name": (["info", "built-in"], "built-in: no such folder. The built-in model is used when no"),
    "an option": (["search", "q", "--modle", "x"], "search: unknown argument; got --modle. Did you mean --model? See"),
}  # fmt: skip


@pytest.mark.parametrize("case", DASHES)
def test_words_that_begin_with_a_dash(cli, case):
    cli("--version")  # enters the folder
    arguments, expected = DASHES[case]
    for name in ("a.txt", "-dash.txt", "-a$b"):
        Path(name).write_text("one\n")
    one_line(cli(*arguments), expected)


def test_what_is_advised_about_dashes_works(cli):
    cli("--version")  # enters the folder
    for name in ("a.txt", "-dash.txt"):
        Path(name).write_text("one\n")
    assert cli("embed", "./-dash.txt").status == 0
    assert cli("embed", "a.txt", "-o=-x.npy").status == 0
    assert Path("-x.npy").exists()
    assert cli("search", "--top-k", "1", "--quiet", "--", "-5C", "a.txt").out.endswith(
        "a.txt:1  one\n"
    )


@pytest.mark.parametrize("kind", [ConfigError, DeviceError, LastwordWarning])
def test_messages_name_the_option_instead_of_the_argument(kind):
    problem = kind("truncate_dim", "out of range", got="65", expected="1 to 64")
    assert in_option_words(problem) == "--dim: out of range; got 65, expected 1 to 64."
    assert problem.where == "--dim"
    assert in_option_words(kind("folder: truncate_dim", "x")) == "folder: truncate_dim: x."


def test_a_file_may_have_the_name_of_an_argument():
    assert in_option_words(InputError("ranges", "has no tensor")) == "ranges: has no tensor."


def test_advice_names_options_too():
    remedy = "Raise max_length, pass too_long='cut', dtype=float32 or normalize_embeddings=True."
    problem = InputError("text 0", "x", expected="truncate_dim or no more", remedy=remedy)
    assert in_option_words(problem) == (
        "text 0: x; expected --dim or no more. "
        "Raise --max-length, pass --on-long cut, --dtype float32 or --normalize."
    )


# Modules whose messages no command can cause: what they say is for Python.
PYTHON_ONLY = ("engine/interop", "engine/base/reopen.py", "engine/encode_options.py")
# Messages of other modules that only a caller in Python can see.
_FOR_PYTHON = (
    "Compare vectors of the same model and truncate_dim.",
    "a Hugging Face id or folder, or None for the built-in model",
    "Decode it with errors='replace' first.",
    "0 to {}, or None for all",
    "1 or more, or None for all",
    "This is an embedding model. Open it as lastword.Embedder.",
    "True or False",
    "neither True nor False",
    "a closed model",
    "Open it again.",
    "one from {}, which opened the model",
    "Open the model again after the fork.",
    "a mapping of str to str, or None",
    "None, 'int8' on a CPU or 'fp8' on a GPU",  # the parser refuses any other name first
    "tasks, benchmarks or card=True",  # as does the command
)


def _text(node):
    """The text of a string, with {} for what is filled in; several for a choice between texts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [
            "".join(
                _text(part)[0] if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        ]
    if isinstance(node, ast.IfExp):
        return _text(node.body) + _text(node.orelse)
    return []


def _parts():
    """Every part of a message in the code: its file, the name of the part, its text."""
    names = ("what", "got", "expected", "remedy")
    for folder in ("engine", "weights", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found = []
                if isinstance(node, ast.keyword) and node.arg in names:
                    found = [(node.arg, node.value)]
                elif isinstance(node, ast.Dict):
                    keys = [
                        key.value if isinstance(key, ast.Constant) else None for key in node.keys
                    ]
                    found = [(k, v) for k, v in zip(keys, node.values, strict=True) if k in names]
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    name = node.targets[0].id
                    found = (
                        [(name if name in names else "remedy", node.value)]
                        if (name in names or (name.startswith("_") and name.isupper()))
                        else []
                    )
                elif isinstance(node, ast.Call) and "Error" in ast.unparse(node.func):
                    found = [("what", each) for each in node.args[1:]]
                for name, value in found:
                    yield from ((file, name, text) for text in _text(value))


def test_no_message_of_a_command_names_a_python_argument():
    """`expected` and `remedy` are translated by `in_option_words`, the other parts are not."""
    keywords = {*OPTION_OF, *EncodeKwargs.__annotations__, *ModelKwargs.__annotations__}
    keywords |= set(HubOptions.__annotations__)
    named = re.compile(rf"\b(?:{'|'.join(name for name in keywords if '_' in name)})\b")
    code = re.compile(r"\b(?:None|True|False|Embedder|EncodeKwargs)\b|\b[a-z_]+=['\"\w]")
    seen, wrong = 0, set()
    for file, part, text in _parts():
        if file.startswith(PYTHON_ONLY) or text in _FOR_PYTHON or " " not in text:
            continue
        said = text
        if part in ("expected", "remedy"):
            problem = InputError("text 0", "x", remedy=text)
            in_option_words(problem)
            said = problem.remedy
            seen += said != text
        if named.search(said) or code.search(said):
            wrong.add((file, text))
    assert not wrong
    assert seen > 5, "there are such messages"


def test_every_setting_that_has_an_option_is_known_by_it():
    parser = Parser()
    options.add_model_options(parser)
    options.add_prompt_options(parser, "text")
    given = {
        action.dest: action.option_strings[-1]
        for action in parser._actions
        if action.option_strings
    }
    dims = {"truncate_dim": "--dim", "too_long": "--on-long", "normalize_embeddings": "--normalize"}
    for setting in (*ModelKwargs.__annotations__, *HubOptions.__annotations__, "max_batch_tokens"):
        option = given.get(setting, dims.get(setting))
        if option is not None:
            assert OPTION_OF[setting] == option, setting
    assert dims.items() <= OPTION_OF.items()


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
