"""`search`: exact order, stable order of ties, file and line of each text, one line per text."""

import json
import sys
from pathlib import Path

import pytest
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
    assert rows[0].keys() == {"rank", "score", "path", "line", "text"}


def test_controls_do_not_reach_the_terminal_and_long_texts_are_shortened(cli):
    Path("a.txt").write_text("\x1b[31mred\n" + "x" * 1000)
    out = cli("search", "q", "a.txt").out
    assert "\x1b" not in out
    assert "\\x1b[31mred" in out
    assert max(map(len, out.splitlines())) < 250


def test_only_what_disturbs_a_terminal_is_escaped(cli):
    kept = "👩\u200d👩\u200d👧 a\u00a0b\u3000c fa\u200cfa \u0915\u094d\u200d 🏴\U000e0067\U000e007f é\u0301 \u200f"
    Path("a.txt").write_text(f"{kept}\n\x9b1m\u202eab\u2066\u2028\x7f\n", encoding="utf-8")
    out = cli("search", "q", "a.txt").out
    assert f"a.txt:1  {kept}\n" in out
    assert "a.txt:2  \\x9b1m\\u202eab\\u2066\\u2028\\x7f\n" in out


def test_cut_texts_are_reported(cli):
    Path("a.txt").write_text("short\n" + "x" * 101 + "\nlast")
    notice = "lastword: fake: a notice\n"
    cut = "lastword: 1 of 3 texts cut to 100 tokens\n"
    assert cli("search", "q", "a.txt").err == notice + cut
    assert cli("search", "q" * 101, "a.txt").err == (
        f"{notice}lastword: QUERY: cut to 100 tokens\n{cut}"
    )
    assert cli("search", "q" * 101, "a.txt", "--quiet").err == ""


# Several queries, a threshold.


def _queries(kind):
    texts = ["two", "", "four"]
    if kind == "jsonl":
        return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts)
    if kind == "csv":
        return "id,text\n" + "".join(f'1,"{text}"\n' for text in texts)
    return "\n".join(texts)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_each_query_of_a_file_has_its_own_hits(cli, kind):
    Path("a.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    Path(f"q.{kind}").write_text(_queries(kind))
    result = cli("search", "--queries", f"q.{kind}", "a.txt", "--top-k", "2")
    alone = [cli("search", query, "a.txt", "--top-k", "2").out for query in ("two", "four")]
    assert result.out == f"two\n{alone[0]}\nfour\n{alone[1]}"
    assert f"q.{kind}: 1 blank text skipped" in result.err
    lines = cli("search", "a.txt", "--queries", f"q.{kind}", "--top-k", "2", "--json").out
    rows = [json.loads(line) for line in lines.splitlines()]
    found = [(row["query"], row["rank"], row["line"]) for row in rows]
    assert found[::2] == [("two", 1, 2), ("four", 1, 4)]
    assert [row["rank"] for row in rows] == [1, 2, 1, 2]


def test_queries_from_stdin_and_of_another_field(cli):
    Path("a.txt").write_text("one\ntwo\n")
    result = cli("search", "--queries", "-", "a.txt", "--top-k", "1", stdin=b"two\none\n")
    assert [line for line in result.out.splitlines() if line[:1].isalpha()] == ["two", "one"]
    Path("q.csv").write_text("ask\ntwo\n")
    refused = cli("search", "--queries", "q.csv", "a.txt")
    assert refused.status == 2
    assert "q.csv:1: has no field 'text'" in refused.err
    assert "--query-field" in refused.err
    found = cli("search", "--queries", "q.csv", "--query-field", "ask", "a.txt", "--top-k", "1")
    assert found.out == "two\n  1  1.0000  a.txt:2  two\n"


def test_queries_and_texts_may_have_different_delimiters(cli):
    Path("b.csv").write_text("id;text\n1;one\n2;two\n")
    Path("c.csv").write_text("id,text\n1,one\n2,two\n")
    for separator in ";,\t":
        Path("q.csv").write_text(f"id{separator}ask\n1{separator}two\n")
        asked = ("--queries", "q.csv", "--query-field", "ask", "--top-k", "1", "--quiet")
        for file in ("b.csv", "c.csv"):
            assert cli("search", file, *asked).out == f"two\n  1  1.0000  {file}:3  two\n"
    error = cli("search", "c.csv", *asked, "--delimiter", ",").err
    assert error.startswith("lastword: q.csv:1: has no field 'ask'")
    assert "Leave out --delimiter" in error
    assert "--delimiter applies to it too" in " ".join(cli("search", "--help").out.split())


def test_a_query_beside_queries_is_hinted_at(cli):
    Path("a.txt").write_text("one\ntwo\n")
    for arguments in (["what is it", "a.txt"], ["a.txt", "what is it"]):
        error = cli("search", "--queries", "a.txt", *arguments).err
        assert error.startswith("lastword: what is it: No such file or directory.")
    error = cli("search", "what is it", "--queries", "a.txt", "a.txt").err
    assert error.endswith("With --queries every argument is a file: leave QUERY out.\n")
    assert cli("search", "a.*", "--queries", "a.txt").status == 0  # a pattern


@pytest.mark.parametrize(("name", "kind"), [("docs", "folder"), ("a.txt", "file")])
def test_a_missing_query_is_told_of(cli, monkeypatch, name, kind):
    cli("--version")  # enters the folder
    Path("docs").mkdir()
    Path("a.txt").write_text("one\n")
    result = cli("search", name, stdin=b"two\n")
    assert result.status == 0
    told = f"stdin is searched for '{name}', which is also the name of a {kind}. To search the {kind}, write the query"
    assert told in result.err
    assert told not in cli("search", name, "--quiet", stdin=b"two\n").err
    assert "stdin is searched" not in cli("search", "other", stdin=b"two\n").err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    refused = cli("search", name)
    assert refused.err == (
        f"lastword: QUERY: is the name of a {kind}, and FILE is missing. To search the {kind}, write the query "
        "before it.\n"
    )


def test_json_has_the_whole_record(cli):
    line = '{"id": 12345678901234567890.10, "text": "two", "meta": {"tags": ["é"]}}'
    Path("a.jsonl").write_text(f'{{"text": "one"}}\n {line} \n', encoding="utf-8")
    Path("b.csv").write_text("n,body\n7,two\n")
    Path("c.jsonl").write_text('{"doc": {"body": "two", "n": 1}}\n')
    one, two = sorted(cli("search", "two", "a.jsonl", "--json").out.splitlines(), key=len)
    assert "record" not in json.loads(one)
    assert two.endswith(f', "record": {line}}}')
    assert json.loads(two)["record"]["meta"] == {"tags": ["é"]}
    row = json.loads(cli("search", "two", "b.csv", "--text-field", "body", "--json").out)
    assert (row["text"], row["record"]) == ("two", {"n": "7", "body": "two"})
    row = json.loads(cli("search", "two", "c.jsonl", "--text-field", "doc.body", "--json").out)
    assert row["record"] == {"doc": {"body": "two", "n": 1}}
    row = json.loads(cli("search", "--queries", "c.jsonl", "--query-field", "doc.body", "b.csv", "--text-field", "body",
                         "--json", "--chunk", "9").out)  # fmt: skip
    assert list(row) == [
        "query",
        "rank",
        "score",
        "path",
        "line",
        "chunk",
        "start",
        "end",
        "text",
        "record",
    ]


def test_queries_of_stdin_are_named_so(cli):
    Path("a.txt").write_text("one\n")
    asked = ("search", "--queries", "-", "a.txt")
    assert cli(*asked, stdin=b"\n").err.startswith("lastword: stdin: contains no query")
    assert "stdin: 1 blank text skipped" in cli(*asked, stdin=b"\na\n").err


def test_many_queries_in_one_pass_rank_as_each_alone(cli, fake_class):
    texts = [f"text {i}" for i in range(40)]
    Path("a.txt").write_text("\n".join(texts))
    Path("q.txt").write_text("\n".join(f"query {i}" for i in range(7)))
    lines = cli("search", "--queries", "q.txt", "a.txt", "--json", "--top-k", "9").out.splitlines()
    model = fake_class()
    vectors = torch.cat(list(model.encode_groups(texts)))
    scores = model.encode_query([f"query {i}" for i in range(7)]) @ vectors.T
    for number in range(7):
        row = scores[number]
        order = sorted(range(40), key=lambda i: (-row[i].item(), i))[:9]
        found = [json.loads(line) for line in lines[9 * number : 9 * number + 9]]
        assert [each["line"] - 1 for each in found] == order
        assert {each["query"] for each in found} == {f"query {number}"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", "a.txt"), "QUERY: is blank; got an empty text"),
        ((" \t\n", "a.txt"), "QUERY: is blank; got only white space"),
        ((), "QUERY: is missing"),
        (("--queries", "blank.txt", "a.txt"), "blank.txt: contains no query"),
        (("--queries", "gone.txt", "a.txt"), "gone.txt: No such file"),
        (("--queries", "-"), "--queries: stdin cannot hold both"),
        (("--queries", "-", "-"), "--queries: stdin cannot hold both"),
        (("--queries", "long.txt", "a.txt", "--on-long", "error"), "long.txt:2: is too long"),
        (("q", "a.txt", "--threshold", "nan"), "not a number"),
        (("q", "a.txt", "--threshold", "high"), "not a number"),
    ],
)
def test_queries_that_cannot_be_used(cli, arguments, said):
    cli("--version")  # enters the folder
    Path("a.txt").write_text("a")
    Path("blank.txt").write_text("\n  \n")
    Path("long.txt").write_text("short\n" + "x" * 101)
    result = cli("search", *arguments)
    assert (result.status, result.out) == (2, "")
    assert said in result.err
    assert result.err.count("\n") == 1


def test_hits_below_the_threshold_are_not_printed(cli):
    Path("a.txt").write_text("one\ntwo\nthree\n")
    scores = [float(line.split()[1]) for line in cli("search", "two", "a.txt").out.splitlines()]
    assert scores[0] == 1
    between = (scores[1] + scores[2]) / 2
    assert len(cli("search", "two", "a.txt", "--threshold", between).out.splitlines()) == 2
    none = cli("search", "zero", "a.txt", "--threshold", "1")
    assert (none.status, none.out) == (0, "")
    assert "lastword: no text scores 1 or more; the best score is 0." in none.err
    Path("q.txt").write_text("two\nzero\n")
    some = cli("search", "--queries", "q.txt", "a.txt", "--threshold", "1")
    assert some.out == "two\n  1  1.0000  a.txt:2  two\n\nzero\n"
    assert "1 of 2 queries: no text scores 1 or more" in some.err


def test_one_cut_text_and_one_cut_query(cli):
    Path("a.txt").write_text("x" * 101)
    Path("q.txt").write_text("y" * 101)
    err = cli("search", "--queries", "q.txt", "a.txt").err
    assert "1 of 1 query cut to 100 tokens" in err
    assert "1 of 1 text cut to 100 tokens" in err


@pytest.mark.parametrize("most", [4, 20])
def test_equal_texts_rank_in_the_order_of_the_files(cli, fake_class, monkeypatch, most):
    """In another batch the last digits of a score differ: here each text scores a little more than the one before."""
    seen = 0

    def similarity(self, a, b):
        nonlocal seen
        seen += len(b)
        return a @ b.T + torch.arange(seen - len(b), seen) * 3e-8

    monkeypatch.setattr(fake_class, "similarity", similarity)
    Path("a.txt").write_text("two\n" * 8)
    Path("b.txt").write_text("two\n" * 3)
    lines = cli("search", "two", "a.txt", "b.txt", "--top-k", most, "--json").out.splitlines()
    found = [(row["path"], row["line"]) for row in map(json.loads, lines)]
    expected = [("a.txt", i + 1) for i in range(8)] + [("b.txt", i + 1) for i in range(3)]
    assert found == expected[:most]
