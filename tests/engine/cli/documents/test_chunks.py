"""Pieces of texts: exact characters, bounded tokens, records and files that tell where each piece is from."""

import json
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.project import ROOT
from safetensors import safe_open

from lastword.cli.documents.chunks import Splitter, around_text
from lastword.errors import ConfigError, InputError
from lastword.model_info import ModelInfo

PROSE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def _sections():
    """Return Markdown that never changes: headings, paragraphs, lists and a table, all of different lengths."""
    draw = random.Random(7)
    words = "model text token batch vector score query file line folder memory kernel".split()

    def sentence():
        return " ".join(draw.choices(words, k=draw.randint(4, 16))).capitalize() + ". "

    def section(number):
        paragraph = "".join(sentence() for _ in range(draw.randint(1, 6)))
        items = "".join(f"- {sentence()}\n" for _ in range(draw.randint(2, 5)))
        rows = "".join(f"| {draw.choice(words)} | {sentence()} |\n" for _ in range(3))
        return f"## Part {number}\n\n{paragraph}\n\n{items}\n| a | b |\n|---|---|\n{rows}\n"

    return "".join(map(section, range(40)))


@pytest.fixture(scope="module")
def info():
    return ModelInfo()


def splitter_of(info, size, overlap=0, prompt="", max_length=100_000):
    return Splitter(SimpleNamespace(info=info, max_length=max_length), size, overlap, prompt)


def _random_text(seed):
    draw = random.Random(seed)
    parts = [
        "word",
        "Sentence. ",
        "\n",
        "\n\n",
        " ",
        "😀",
        "e\u0301",
        "漢字",
        "\r\n",
        "# H\n",
        "- x\n",
        "\t",
        "`",
        "\0",
        "|a|b|\n",
        "a" * 90,
    ]
    return "".join(draw.choices(parts, k=draw.randint(0, 600)))  # fmt: skip


TEXTS = {
    "nothing": "",
    "blank": " \n\t\n",
    "prose": PROSE,
    "long": PROSE * 4,
    "one word": "a" * 40_000,
    "no sentences": "word " * 12_000,
    "emoji": "😀" * 5000 + "x",
    "line ends": "a line of text\r\n" * 3000,
    "far apart": ("x" + "\n" * 3000) * 12,
    "spaces": "a" + " " * 40_000 + "b",
    **{f"random {seed}": _random_text(seed) for seed in range(20)},
}


@pytest.mark.parametrize("markdown", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_pieces_are_parts_of_the_text(info, name, markdown):
    text, size = TEXTS[name], 30
    pieces = list(splitter_of(info, size).split(text, markdown=markdown))
    end = 0
    for start, piece in pieces:
        assert text[start : start + len(piece)] == piece
        assert not text[end:start].strip(), "only white space lies between pieces"
        assert info.tokenizer.count(piece) <= size or len(piece) == 1
        end = start + len(piece)
    assert not text[end:].strip()
    assert all(piece.strip() for _, piece in pieces)


@pytest.mark.parametrize("markdown", [False, True])
@pytest.mark.parametrize("overlap", [0, 20])
def test_windows_change_nothing(info, overlap, markdown):
    text = _sections()
    small, large = splitter_of(info, 100, overlap), splitter_of(info, 100, overlap)
    small._window, large._window = 6000, len(text)
    pieces = list(large.split(text, markdown=markdown))
    assert len(pieces) > 40
    # Where a piece begins can depend on the text before it, if pieces overlap or a window ends inside a table or list.
    # In this text no window does.
    assert list(small.split(text, markdown=markdown)) == pieces


def test_pieces_overlap_by_at_most_so_many_tokens(info):
    pieces = list(splitter_of(info, 60, 20).split(PROSE))
    shared = 0
    for (first, piece), (start, _) in pairwise(pieces):
        end = first + len(piece)
        assert first < start
        if start < end:
            shared += 1
            assert 0 < info.tokenizer.count(PROSE[start:end]) <= 20
    assert shared > 5  # as far as a border lies near enough


def test_borders_are_those_of_paragraphs_and_sentences(info):
    text = "One two three. Four five six.\n\nSeven eight nine ten.\n\nEleven twelve. Thirteen"
    pieces = [piece for _, piece in splitter_of(info, 8).split(text)]
    assert pieces == [
        "One two three. Four five six.",
        "Seven eight nine ten.",
        "Eleven twelve. Thirteen",
    ]
    headings = "intro\n\n# A\n\na b c\n\n# B\n\nd e f"
    pieces = [piece for _, piece in splitter_of(info, 5).split(headings, markdown=True)]
    assert [piece.split("\n")[0] for piece in pieces] == ["intro", "# A", "# B"]


def test_template_and_prompt_are_not_counted_but_must_fit(info):
    around = info.tokenizer.num_template_tokens + info.tokenizer.count("Query: ")
    assert around > info.tokenizer.num_template_tokens > 0
    splitter = splitter_of(info, 20, prompt="Query: ", max_length=20 + around)
    sizes = [info.tokenizer.count(piece) for _, piece in splitter.split("word " * 100)]
    assert max(sizes) == 20
    with pytest.raises(ConfigError) as caught:
        splitter_of(info, 21, prompt="Query: ", max_length=20 + around)
    assert str(caught.value) == (
        f"--chunk: chunks would be cut; got 21 tokens and {around} for the prompt and special tokens, "
        f"expected together at most {20 + around} tokens. Lower --chunk, or raise --max-length if the model allows it."
    )


def test_an_error_of_the_tokenizer_names_the_text(info):
    def fails(text):
        if "bad" in text:
            raise InputError("text 0", "fails", index=0)
        return len(text)

    tokenizer = SimpleNamespace(count=fails, num_template_tokens=0)
    splitter = splitter_of(SimpleNamespace(tokenizer=tokenizer), 9)
    from lastword.cli.read import Record

    pieces = splitter.split_records(
        (
            Record(text, "a.md", 7, frozenset(), json.dumps({"text": text})[:-1])
            for text in ("good", "so bad")
        ),
        "text",
    )
    assert next(pieces).where == "a.md:7[0:4]"
    with pytest.raises(InputError, match=r"a\.md:7: fails") as caught:
        next(pieces)
    assert caught.value.index is None


AROUND = {
    "only": ('{"text": "x"', "text", ('{"text": ', "")),
    "first": ('{ "text" :\t"a\\"b", "n": 1.10', "text", ('{ "text" :\t', ', "n": 1.10')),
    "last": ('{"n":12345678901234567890123,"text":"x"', "text", ('{"n":12345678901234567890123,"text":', "")),
    "nested": ('{"text": 1, "doc": {"n": [1e400, "text"], "text": "x"}, "m": {}', "doc.text",
        ('{"text": 1, "doc": {"n": [1e400, "text"], "text": ', '}, "m": {}')),
    "a dot in the name": ('{"a": {"b": 1}, "a.b": "x"', "a.b", ('{"a": {"b": 1}, "a.b": ', "")),
    "a dot further in": ('{"a": {"b.c": "x"}', "a.b.c", ('{"a": {"b.c": ', "}")),
    "escaped": ('{"t\\u0065xt": "x"', "text", ('{"t\\u0065xt": ', "")),
    "a digit's limit": ('{"n": ' + "9" * 5000 + ', "text": "x"', "text", ('{"n": ' + "9" * 5000 + ', "text": ', "")),
}  # fmt: skip


@pytest.mark.parametrize("name", AROUND)
def test_around_the_text(name):
    fields, field, expected = AROUND[name]
    assert around_text(fields, field) == expected


# The command line; its fake model has a token per character.


def rows_of(result):
    assert result.status == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


INPUTS = {
    "a.txt": ("One. Two.\n\nThree.\n", ["One.", "Two.", "Three."], [1, 1, 3], [0, 5, 0]),
    "a.jsonl": ('{"n": 1.50, "text": "One. Two.", "m": null}\n', ["One.", "Two."], [1, 1], [0, 5]),
    "a.csv": ("n,text\n7,One. Two.\n", ["One.", "Two."], [2, 2], [0, 5]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_pieces_of_lines_and_records(cli, name):
    data, texts, lines, starts = INPUTS[name]
    Path(name).write_text(data)
    result = cli("embed", name, "--chunk", "7", "--quiet")
    rows = rows_of(result)
    assert [row["text"] for row in rows] == texts
    assert [row["line"] for row in rows] == lines
    assert [row["start"] for row in rows] == starts
    assert all(row["end"] - row["start"] == len(row["text"]) for row in rows)
    assert [row["chunk"] for row in rows] == [0, 1, 0][: len(rows)]
    assert {row["path"] for row in rows} == {name}
    assert [row.get("n") for row in rows] == [{"a.jsonl": 1.5, "a.csv": "7"}.get(name)] * len(rows)
    assert ('"n": 1.50' in result.out) == (name == "a.jsonl")
    plain = rows_of(cli("embed", "-", "--quiet", stdin="\n".join(texts).encode()))
    assert [row["embedding"] for row in rows] == [row["embedding"] for row in plain]


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
@pytest.mark.parametrize("options", [["--files"], ["--chunk", "7"], ["--files", "--chunk", "7"]])
def test_rows_of_binary_files_have_their_places(cli, ending, options):
    Path("a.md").write_text("One. Two.\n\nThree.")
    Path("b.md").write_text("Four.")
    out = f"o.{ending}"
    names = ["path", "line", "chunk", "start", "end"] + (["text"] if "--chunk" in options else [])
    assert cli("embed", "a.md", "b.md", *options, "-o", out, "--quiet").status == 0
    places = [json.loads(line) for line in Path(f"{out}.rows.jsonl").read_text().splitlines()]
    lines = rows_of(cli("embed", "a.md", "b.md", *options, "--quiet"))
    assert places == [{name: row[name] for name in names if name in row} for row in lines]
    assert len(places) == (2 if options == ["--files"] else 4)
    assert [place["path"] for place in places].count("b.md") == 1
    assert ("line" in places[0]) == ("--files" not in options)
    assert ("chunk" in places[0]) == ("--chunk" in options)
    if ending == "npy":
        vectors = np.load(out)
    else:
        with safe_open(out, "np") as file:
            vectors = file.get_tensor("embedding")
            assert file.metadata().get("chunk") == (options[-1] if "--chunk" in options else None)
    assert np.allclose(vectors, np.array([row["embedding"] for row in lines], "float32"))


TEXTS_OF_FILES = {
    "a.md": b"One. Two.\n\nThree.",
    "line ends.txt": b"One.\r\nTwo.\r\n\r\nThree \xc3\xa9.\r\n",
    "mark.txt": b"\xef\xbb\xbfOne. Two.\n\nThree.",
}


@pytest.mark.parametrize("name", TEXTS_OF_FILES)
def test_pieces_are_found_again_as_the_help_says(cli, name):
    cli("--version")  # enters the folder
    Path(name).write_bytes(TEXTS_OF_FILES[name])
    assert cli("embed", name, "--files", "--chunk", "7", "-o", "o.npy", "--quiet").status == 0
    rows = [json.loads(line) for line in Path("o.npy.rows.jsonl").read_text().splitlines()]
    opening = 'open(path, encoding="utf-8-sig", newline="").read()'
    assert opening in cli("embed", "--help").out
    for row in rows:
        with open(row["path"], encoding="utf-8-sig", newline="") as file:
            text = file.read()
        assert text[row["start"] : row["end"]] == row["text"]
    assert len(rows) > 2


def test_the_piece_of_a_page_is_stored(cli):
    Path("a.html").write_text("<h1>One.</h1><p>Two &amp; <b>three</b>.</p>")
    assert cli("embed", "a.html", "--files", "--chunk", "12", "-o", "o.npy").status == 0
    rows = [json.loads(line) for line in Path("o.npy.rows.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["One.", "Two & three."]


MANY = {
    "a folder": (["d"], True),
    "a pattern": (["d/*.txt"], True),
    "two files": (["d/a.txt", "d/b.jsonl"], True),
    "a folder with one file": (["one"], True),
    "one file": (["d/a.txt"], False),
}


@pytest.mark.parametrize("name", MANY)
def test_lines_of_many_files_have_their_places(cli, name):
    given, placed = MANY[name]
    for file, text in (("d/a.txt", "x\ny\n"), ("d/b.jsonl", '\n{"text": "z"}'), ("one/c.txt", "x")):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(text)
    rows = rows_of(cli("embed", *given, "--quiet"))
    assert all(("path" in row, "line" in row) == (placed, placed) for row in rows)
    for row in rows if placed else []:
        assert row["text"] in Path(row["path"]).read_text().splitlines()[row["line"] - 1]
    assert cli("embed", *given, "-o", "o.npy", "--quiet").status == 0
    assert Path("o.npy.rows.jsonl").exists() == placed
    if placed:
        places = [json.loads(line) for line in Path("o.npy.rows.jsonl").read_text().splitlines()]
        assert places == [{"path": row["path"], "line": row["line"]} for row in rows]
    Path("d/b.jsonl").unlink()
    Path("d/t.csv").write_text("body\nz\n")
    mixed = cli("embed", "d/t.csv", "d/a.txt", "--text-field", "body", "--quiet")
    assert mixed.out.count("\n") == 3, "some input has fields"


def test_a_field_is_refused_wherever_no_input_has_one(cli):
    Path("a.txt").write_text("x\n")
    Path("a.md").write_text("x\n")
    for command in (
        ("embed", "a.txt", "--text-field", "b"),
        ("embed", "a.md", "--files", "--text-field", "b"),
        ("search", "q", "a.txt", "--text-field", "b"),
        ("embed", "--text-field", "b"),
        ("verify", "--texts", "a.txt", "--text-field", "b"),
        ("search", "a.txt", "--queries", "a.md", "--query-field", "b"),
    ):
        result = cli(*command, stdin=b"x\n")
        assert result.status == 2, command
        assert result.err.startswith(
            f"lastword: {command[-2]}: is for .jsonl, .csv, .tsv and .parquet files;"
        )


def test_nothing_is_written_of_a_run_that_fails(cli):
    Path("a.md").write_text("One.\n\nNOTOKENS")
    assert cli("embed", "a.md", "--chunk", "9", "-o", "o.npy", "--quiet").status == 2
    Path("o.npy.rows.jsonl").write_text("mine")
    options = ("--input-format", "txt", "--chunk", "9", "-o", "o.npy")
    result = cli("embed", "o.npy.rows.jsonl", *options)
    assert "o.npy.rows.jsonl: would be overwritten" in result.err
    assert Path("o.npy.rows.jsonl").read_text() == "mine"
    assert not Path("o.npy").exists()


REFUSED = {
    "overlap alone": (["--overlap", "3"], "--overlap: needs --chunk. Pass --chunk N too."),
    "overlap too large": (["--chunk", "3", "--overlap", "3"], "--overlap: is too large; got --chunk 3 --overlap 3"),
    "no piece": (["--chunk", "0"], "--chunk: not a whole number of at least 1; got '0'"),
    "longer than max_length": (["--chunk", "101"], "--chunk: chunks would be cut; got 101 tokens and 0 for the prompt"),
    "a format": (["--files", "--input-format", "txt"], "--files: reads each file as one text; got --input-format txt"),
    "a field of the record": (["--chunk", "9"], ("a.jsonl:1[0:1]: already has a field 'line'; expected"
        " none of path, line, chunk, start, end, which are added to tell where each text comes from. Rename the")),
    "a field of whole lines": (["b.txt"], ("a.jsonl:1: already has a field 'line'; expected none of path, line,"
        " which are added to tell where each text comes from. Rename the field, or embed each file by itself.")),
    "a field of no input": (["--input-format", "txt", "--text-field", "body"], ("--text-field: is for .jsonl, .csv,"
        " .tsv and .parquet files; got 'body', expected such an input, or --input-format.")),
    "the vectors' field": (["--chunk", "9", "--vector-field", "end"], "--vector-field: the name 'end' is already used"),
    "a delimiter of nothing": (["--delimiter", ";"], "--delimiter: is for .csv and .tsv files"),
    "a delimiter of two": (["--delimiter", ";;"], "--delimiter: must be one character other than a quote or line end;"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(cli, name):
    options, message = REFUSED[name]
    Path("a.jsonl").write_text('{"text": "x", "line": 1}\n')
    Path("b.txt").write_text("x\n")
    result = cli("embed", "a.jsonl", *options, "--quiet")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"lastword: {message}")
    assert len(result.err.splitlines()) == 1


def test_a_hit_is_shown_with_its_place(cli):
    Path("a.md").write_text("One. Two.\n\nThree.")
    Path("b.txt").write_text("x\nOne. Two.\n")

    def first(*options):
        result = cli("search", "Two.", *options, "--top-k", "1", "--quiet")
        assert result.status == 0, result.err
        return result.out

    assert first("a.md", "--files", "--chunk", "7") == "  1  1.0000  a.md[5:9]  Two.\n"
    assert first("b.txt", "--chunk", "7") == "  1  1.0000  b.txt:2[5:9]  Two.\n"
    assert "  a.md  One. Two.\\n\\nThree.\n" in first("a.md", "--files")
    hit = json.loads(first("b.txt", "--chunk", "7", "--json"))
    del hit["score"]
    assert hit == {"rank": 1, "path": "b.txt", "line": 2, "chunk": 1, "start": 5, "end": 9, "text": "Two."}  # fmt: skip
    hit = json.loads(first("a.md", "--files", "--json"))
    assert list(hit) == ["rank", "score", "path", "text"]


def test_the_run_fingerprint_knows_the_pieces(info, cli):
    plain = info.run_fingerprint()
    settings = {
        (size, overlap): info.run_fingerprint(chunking=splitter_of(info, size, overlap).settings())
        for size, overlap in ((20, 0), (20, 5), (30, 5))
    }
    assert len({plain, *settings.values()}) == 4
    assert info.run_fingerprint(chunking=None) == plain
    Path("a.txt").write_text("x")
    assert cli("embed", "a.txt", "--chunk", "9", "--overlap", "2", "-o", "o.jsonl").status == 0
    metadata = json.loads(Path("o.jsonl.json").read_text())
    assert (metadata["chunk"], metadata["overlap"], metadata["run"]) == (9, 2, "run-float32-9")
    assert metadata["splitter"].startswith("semantic-text-splitter 0.")


FIELDS = {
    "nested": ('{"doc": {"body": "x"}}', "doc.body", "x"),
    "the very name first": ('{"doc": {"body": "y"}, "doc.body": "x"}', "doc.body", "x"),
    "not there": ('{"doc": {"a": 1, "b": 2}}', "doc.body", "a:1, in 'doc': has no field 'body'; got a, b. Name"),
    "not there at the top": ('{"doc": {"a": 1}, "n": 1}', "dok.a", "a:1: has no field 'dok'; got doc, n. Name"),
    "no object": ('{"doc": "x"}', "doc.body", "has no field 'doc.body'; got a string in 'doc', expected an object."),
    "inside": ('{"n": {}, "doc": {"text": "x"}}', "text", ("a:1: has no field 'text'; got n, doc. If doc.text is meant,"
        " pass --text-field doc.text.")),
    "a list": ('{"doc": {"x": [{"y": 1}]}}', "doc.x.y", "got a list in 'x', expected an object."),
    "not a string": ('{"doc": {"body": 1}}', "doc.body", "wrong field 'doc.body'; got a number, expected a string."),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_objects(cli, name):
    line, field, expected = FIELDS[name]
    Path("a").write_text(line)
    options = ("--input-format", "jsonl", "--text-field", field, "--quiet")
    result = cli("embed", "a", *options)
    if result.status:
        assert expected in result.err
        return
    (row,) = rows_of(result)
    (text,) = rows_of(cli("embed", "-", "--quiet", stdin=expected.encode()))
    assert row["embedding"] == text["embedding"]
    (piece,) = rows_of(cli("embed", "a", *options, "--chunk", "9"))
    assert {**row, "path": "a", "line": 1, "chunk": 0, "start": 0, "end": 1} == piece


TABLES = {
    "semicolons": ("a.csv", "id;text\n1;x, y\n", [";"]),
    "tabs": ("a.csv", "id\ttext\n1\tx, y\n", ["tab", "\\t", "\t"]),
    "bars": ("a.csv", "id|text\n1|x, y\n", ["|"]),
    "commas": ("a.tsv", 'id,text\n1,"x, y"\n', [","]),
    "quoted names": ("a.csv", '"id";"text"\n1;"x, y"\n', [";"]),
    "blank lines first": ("a.csv", '\n\r\n"id";"text"\r\n1;"x, y"\n', [";"]),
    "a name with the character": ("a.csv", 'id,text,a;b\n1,"x, y",2\n', [","]),
}


@pytest.mark.parametrize("name", TABLES)
def test_delimiters(cli, name):
    file, data, delimiters = TABLES[name]
    Path(file).write_text(data)
    for options in [[], *(["--delimiter", each] for each in delimiters)]:
        (row,) = rows_of(cli("embed", file, *options, "--quiet"))
        assert (row["id"], row["text"]) == ("1", "x, y")


def test_each_file_has_its_own_delimiter(cli):
    Path("a.csv").write_text("id;text\n1;x, y\n")
    Path("b.csv").write_text('id,text\n2,"x; y"\n')
    rows = rows_of(cli("embed", "a.csv", "b.csv", "--quiet"))
    assert [row["text"] for row in rows] == ["x, y", "x; y"]
    for delimiter, wrong in ((";", "b.csv"), (",", "a.csv")):
        error = cli("embed", "a.csv", "b.csv", "--delimiter", delimiter).err
        assert f"{wrong}:1: has no field 'text'" in error
        assert error.endswith(
            "Leave out --delimiter: the character is then found for each file, by its header.\n"
        )
    Path("c.csv").write_text('"id","text"\n3,x\n')
    assert "Leave out --delimiter:" in cli("embed", "c.csv", "--delimiter", ";").err


def test_the_field_tells_the_delimiter(cli):
    Path("a.csv").write_text("id;body\n1;x, y\n")
    assert cli("embed", "a.csv").err.endswith(
        "got id;body. Name the field that holds the text with --text-field.\n"
    )
    (row,) = rows_of(cli("embed", "a.csv", "--text-field", "body", "--quiet"))
    assert row["body"] == "x, y"


def test_spaces_around_the_name_of_a_column(cli):
    for header in ("id, text", "id; text"):
        Path("a.csv").write_text(f"{header}\n1{header[2]} x\n")
        error = cli("embed", "a.csv").err
        assert error.endswith("There are spaces in its name: pass --text-field ' text'.\n")
        (row,) = rows_of(cli("embed", "a.csv", "--text-field", " text", "--quiet"))
        assert row[" text"] == " x"


def test_the_places_of_an_earlier_run_do_not_stay_beside_other_vectors(cli):
    cli("--version")  # enters the folder
    Path("a.txt").write_text("one two three four five six\n")
    assert cli("embed", "a.txt", "--chunk", "3", "-o", "o.npy").status == 0
    assert Path("o.npy.rows.jsonl").exists()
    Path("o.jsonl.rows.jsonl").write_text('{"path": "of an earlier run"}')
    for out in ("o.npy", "o.jsonl"):
        assert cli("embed", "a.txt", "-o", out).status == 0
        assert not Path(f"{out}.rows.jsonl").exists()
