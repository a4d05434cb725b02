"""`search`: exact order, stable order of ties, file and line of each text, one line per text."""

import json
from pathlib import Path

import torch


def test_finds_the_equal_text_first_and_says_where(cli):
    Path("a.txt").write_text("one\ntwo\nthree\n")
    Path("b.csv").write_text('text,n\n"t\nw",1\ntwo,2\n')
    result = cli("search", "two", "a.txt", "b.csv", "--top-k", "3", "--quiet")
    lines = result.out.splitlines()
    assert result.status == 0
    assert result.err == ""
    assert len(lines) == 3
    assert lines[0] == "  1  1.0000  a.txt:2  two"
    assert lines[1] == "  2  1.0000  b.csv:4  two"


def test_json_has_exact_scores_of_the_best_k(cli, fake_class):
    texts = [f"text {i % 50}" for i in range(60)]
    Path("a.txt").write_text("\n".join(texts))
    result = cli("search", "query", "a.txt", "--json", "--top-k", "25")
    rows = [json.loads(line) for line in result.out.splitlines()]
    model = fake_class()
    scores = torch.cat(list(model.encode_groups(texts))) @ model.encode_query(["query"])[0]
    order = sorted(range(60), key=lambda i: (-scores[i].item(), i))[:25]
    assert [row["line"] - 1 for row in rows] == order
    assert [row["rank"] for row in rows] == list(range(1, 26))
    assert max(abs(row["score"] - scores[i]) for row, i in zip(rows, order, strict=True)) < 1e-6
    assert rows[0].keys() == {"rank", "score", "file", "line", "text"}


def test_controls_do_not_reach_the_terminal_and_long_texts_are_shortened(cli):
    Path("a.txt").write_text("\x1b[31mred\n" + "x" * 1000)
    out = cli("search", "q", "a.txt").out
    assert "\x1b" not in out
    assert "\\x1b[31mred" in out
    assert max(map(len, out.splitlines())) < 250


def test_cut_texts_are_reported(cli):
    Path("a.txt").write_text("short\n" + "x" * 101 + "\nlast")
    notice = "lastword: fake: a notice\n"
    cut = "lastword: 1 of 3 texts cut to 100 tokens\n"
    assert cli("search", "q", "a.txt").err == notice + cut
    assert cli("search", "q" * 101, "a.txt").err == (
        f"{notice}lastword: QUERY: cut to 100 tokens\n{cut}"
    )
    assert cli("search", "q" * 101, "a.txt", "--quiet").err == ""


def test_no_texts_no_lines(cli):
    Path("a.txt").write_text("")
    result = cli("search", "q", "a.txt", "--quiet")
    assert result == (0, "", "")


def test_files_without_texts_are_reported(cli):
    Path("empty.txt").write_text("")
    result = cli("search", "x", "empty.txt")
    assert (result.status, result.out) == (0, "")
    assert result.err.splitlines()[-1] == "lastword: FILES: contain no texts"
    assert cli("search", "x", "empty.txt", "--quiet") == (0, "", "")
