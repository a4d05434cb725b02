"""`--on-error skip` in `embed`, `search` and `rerank`: nothing left, the list of --errors, and the words of both."""

import json
import os
from pathlib import Path

import pytest

# Outputs of an earlier run, as far as lastword looks at them.
_METADATA = json.dumps({"space": "1", "run": "2", "fingerprints": "3", "lastword": "4"})
_HEADER = f'{{"__metadata__": {_METADATA}}}'.encode()
OLD = {
    "o.npy": b"old",
    "o.npy.json": _METADATA.encode(),
    "r": len(_HEADER).to_bytes(8, "little") + _HEADER,
}
SKIP = ("--on-error", "skip")
COMMANDS = [("embed",), ("search", "one"), ("rerank", "one", "--model", "m")]


class _Ranks:
    """Stands for a reranker: every document is as relevant as it is long."""

    max_length, notices = 100, ()

    def __init__(self, embedder):
        self._embedder, self.info = embedder, embedder.info

    def text_before_document(self, query, instruction):
        return ""

    def predict(self, pairs, *, too_long="cut", report=None, **options):
        (vectors,) = list(
            self._embedder.encode_groups([text for _, text in pairs], too_long=too_long)
        ) or [None]
        report.texts += len(pairs)
        return vectors[:, 0]

    def close(self):
        """Do nothing."""


@pytest.fixture
def run(cli, fake_class, monkeypatch):
    """Run any of the commands, with fake models."""
    from lastword.cli import options

    monkeypatch.setattr(options, "open_reranker", lambda args: _Ranks(fake_class()))
    cli("--version")  # enters the folder
    return cli


# Inputs of which nothing is left: contents by name, and what is said.
LOST = {
    "records": ({"a.txt": b"NOTOKENS\n\xff\n"}, "a.txt: no text is left; got 2 texts left out because"),
    "a file": ({"a.txt": "x".encode("utf-16")}, "a.txt: no text is left; got 1 file left out because"),
    "files": (
        {"a.txt": "x".encode("utf-16"), "b.csv": b"id\n1\n", "c.txt": b"NOTOKENS"},
        "3 inputs: no text is left; got 2 files and 1 text left out because",
    ),
    "and blank ones": (
        {"a.jsonl": b'{"text": " "}\n{"text": 1}\n'},
        "a.jsonl: no text is left; got 1 text left out because of an error, 1 blank text skipped. The first: a.jsonl:2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each[0])
@pytest.mark.parametrize("case", LOST)
@pytest.mark.parametrize("listed", [False, True])
def test_nothing_left_is_an_error_and_the_list_is_written(run, command, case, listed):
    files, said = LOST[case]
    for name, content in files.items():
        Path(name).write_bytes(content)
    outputs = {"embed": ["-o", "o.npy", "--skip-blank", "--save-ranges", "r"]}.get(command[0], [])
    for name, old in OLD.items():
        Path(name).write_bytes(old)
    options = ("--errors", "bad.jsonl") if listed else ()
    result = run(*command, *files, *SKIP, *outputs, *options, "--quiet")
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert result.err.startswith(f"lastword: {said}")
    assert "The first: a." in result.err
    assert all(Path(name).read_bytes() == old for name, old in OLD.items())
    left = sorted({*files, *OLD, *(["bad.jsonl"] if listed else [])})
    assert sorted(os.listdir()) == left
    if listed:
        rows = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
        assert {row["path"] for row in rows} == set(files)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each[0])
def test_a_run_that_fails_leaves_no_list_of_an_earlier_one(run, command):
    Path("a.txt").write_bytes(b"one\n\xff\n")
    Path("blank.txt").write_text("\n")
    options = (*SKIP, "--errors", "bad.jsonl")
    failing = [["gone.txt"], ["a.txt", "--delimiter", ";"], ["a.txt", "--overlap", "3"]]
    failing += [["blank.txt", "--skip-blank"]] if command[0] == "embed" else [["blank.txt"]]
    for arguments in failing:
        assert run(*command, "a.txt", *options).status == 0
        assert Path("bad.jsonl").exists()
        assert run(*command, *arguments, *options).status == 2
        assert not Path("bad.jsonl").exists(), arguments


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each[0])
def test_only_a_list_is_removed_and_never_an_input(run, command):
    Path("a.txt").write_bytes(b"one\n\xff\n")
    Path("mine").write_bytes(b"old")
    assert run(*command, "gone.txt", *SKIP, "--errors", "mine").status == 2
    assert Path("mine").read_bytes() == b"old"
    assert run(*command, "a.txt", *SKIP, "--errors", "bad.jsonl").status == 0
    before = Path("bad.jsonl").read_bytes()
    field = ("--text-field", "error")
    for given in ("bad.jsonl", "./bad.jsonl"):
        refused = run(*command, given, *field, *SKIP, "--errors", "bad.jsonl")
        assert "bad.jsonl: would be overwritten; expected a file that is not one" in refused.err
        assert Path("bad.jsonl").read_bytes() == before
    os.symlink("bad.jsonl", "link")
    assert run(*command, "gone.txt", *SKIP, "--errors", "link").status == 2
    assert not Path("bad.jsonl").exists()


def test_the_list_of_queries_is_not_removed(run):
    Path("a.txt").write_bytes(b"one\n\xff\n")
    assert run("embed", "a.txt", *SKIP, "--errors", "bad.jsonl").status == 0
    options = ("--queries", "bad.jsonl", "--query-field", "error")
    result = run("search", "a.txt", *options, *SKIP, "--errors", "./bad.jsonl")
    assert "would be overwritten" in result.err
    assert Path("bad.jsonl").exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each[0])
def test_notices_and_lists_speak_of_options(run, command, fake_class, monkeypatch):
    """The advice of an error that is skipped names options, as that of an error that ends the run does."""
    vector = fake_class._vector

    def refuse(self, text, index, too_long):
        from lastword.errors import InputError

        if text == "long":
            remedy = "Shorten it, raise max_length, or pass too_long='cut'."
            raise InputError(f"text {index}", "is too long", remedy=remedy, index=index)
        return vector(self, text, index, too_long)

    monkeypatch.setattr(fake_class, "_vector", refuse)
    Path("a.txt").write_text("one\nlong\n")
    Path("b.txt").write_text("long\n")
    advice = "Shorten it, raise --max-length, or pass --on-long cut."
    stopped = run(*command, "a.txt")
    said = run(*command, "a.txt", *SKIP)
    assert run(*command, "a.txt", *SKIP, "--errors", "bad.jsonl").status == said.status == 0
    nothing = run(*command, "b.txt", *SKIP)
    (listed,) = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
    for text in (stopped.err, said.err, nothing.err, listed["error"]):
        assert advice in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each[0])
def test_the_list_names_places_and_nothing_else(run, command):
    """Blank texts, pieces and files change nothing about what the list says of a text."""
    pytest.importorskip("semantic_text_splitter")
    Path("a.csv").write_bytes(b"n,text\n1,\n2,one\n3\n4,NOTOKENS\n")
    Path("b.txt").write_text("A\n\nTwo.\n\nNOTOKENS\n")
    Path("c.txt").write_bytes("x".encode("utf-16"))
    Path("d.txt").write_text("One two.")

    def listed(*options):
        result = run(*command, *options, *SKIP, "--errors", "bad.jsonl")
        assert result.status == 0, result.err
        rows = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
        assert all("error" in row for row in rows)
        places = [{name: row[name] for name in row if name != "error"} for row in rows]
        return sorted(places, key=lambda place: (place["path"], place.get("line", 0)))

    lines = [
        {"path": "a.csv", "line": 4},
        {"path": "a.csv", "line": 5},
        {"path": "b.txt", "line": 5},
        {"path": "c.txt"},
    ]
    assert listed("a.csv", "b.txt", "c.txt") == lines
    pieces = listed("a.csv", "b.txt", "c.txt", "--chunk", "20")
    assert [
        {"path": p["path"], **({"line": p["line"]} if "line" in p else {})} for p in pieces
    ] == lines
    assert (pieces[1]["chunk"], pieces[1]["start"], pieces[1]["end"]) == (0, 0, 8)
    assert "chunk" not in pieces[0]
    assert listed("c.txt", "d.txt", "--files") == [{"path": "c.txt"}]


# Advice that names the command as it was called, and the file.
PIPED = {
    "embed": (["embed", "a b.txt.bz2"], "bzcat 'a b.txt.bz2' | lastword embed - --input-format txt."),
    "search": (["search", "q", "a.csv.xz"], "xzcat a.csv.xz | lastword search QUERY - --input-format csv."),
    "queries": (["search", "--queries", "q.txt", "a.bz2"], "bzcat a.bz2 | lastword search --queries q.txt - --input"),
    "of queries": (["search", "--queries", "q.txt.bz2", "q.txt"], "input format .bz2. Unpack it first.\n"),
    "rerank": (["rerank", "q", "a.md.bz2", "--files", "--model", "m"], "bzcat a.md.bz2 | lastword rerank QUERY - --fi"),
    "verify": (["verify", "--texts", "a.jsonl.xz"], "xzcat a.jsonl.xz | lastword verify --texts - --input-format"),
    "by content": (["search", "q", "gz"], "zcat gz | lastword search QUERY - --input-format txt."),
    "json": (["embed", "a b.json"], "jq -c '.[]' 'a b.json' > 'a b.jsonl'. If"),
    "records": (["search", "q", "a.csv", "--files"], "pipe it in: lastword search QUERY - --files < a.csv."),
}  # fmt: skip


@pytest.mark.parametrize("case", PIPED)
def test_advice_names_the_command_and_the_file(run, case):
    arguments, said = PIPED[case]
    Path("q.txt").write_text("one\n")
    for name in (*arguments, "gz"):
        if "." in name or name == "gz":
            Path(name).write_bytes(b"\x1f\x8b\x08" if name != "q.txt" else b"one\n")
    result = run(*arguments)
    assert result.status == 2
    assert said in result.err


def test_advice_for_packed_stdin_names_no_file(run):
    result = run("embed", "-", stdin=b"\x1f\x8b\x08")
    assert "use a pipe: zcat | lastword embed - --input-format txt." in result.err


def test_advice_for_a_file_of_a_folder_says_what_becomes_of_the_original(run):
    os.mkdir("docs")
    Path("docs/a.txt").write_bytes(b"caf\xe9")
    for given in ("docs", "docs/*.txt"):
        assert run("embed", given).err.endswith(
            "docs/a.utf8.txt to convert it, then move the original away or leave it out with --ignore.\n"
        )
    assert run("embed", "docs/a.txt").err.endswith("docs/a.utf8.txt to convert it.\n")
