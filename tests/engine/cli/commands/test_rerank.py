"""`rerank`: the order and scores of `Reranker`, with a real, tiny one; files, lines and errors as for `search`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.messages import one_line
from helpers.small_models import TEMPLATE, make_reranker

from lastword import Reranker

DOCUMENTS = ["the cat sat", "yes", "", "no no no", "the cat sat", "another text €"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("cli") / "reranker")


@pytest.fixture
def rerank(run, folder):
    Path("a.txt").write_text("\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    return lambda *arguments: run("rerank", *arguments, "--model", folder, "--device", "cpu")


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_the_order_is_that_of_rank(rerank, folder) -> None:
    texts = [text for text in DOCUMENTS if text]
    expected = Reranker(folder, device="cpu").rank("the cat", texts, return_documents=True)
    status, out, err = rerank("the cat", "a.txt", "--json")
    assert (status, err) == (0, "lastword: 1 blank text skipped\n")
    assert [row["text"] for row in rows(out)] == [each["text"] for each in expected]
    for row, each in zip(rows(out), expected, strict=True):
        assert row.keys() == {"rank", "score", "path", "line", "text"}
        assert abs(row["score"] - each["score"]) < 1e-6
        assert DOCUMENTS[row["line"] - 1] == row["text"]
    same = [row["line"] for row in rows(out) if row["text"] == "the cat sat"]
    assert same == [1, 5]


@pytest.mark.usefixtures("rerank")  # which writes the texts
def test_a_reranker_in_embed_is_told_or_refused(run, folder, tmp_path) -> None:
    asked = ("embed", "a.txt", "--skip-blank", "--device", "cpu")
    status, out, err = run(*asked, "--model", folder)
    assert (status, len(rows(out))) == (0, len(DOCUMENTS) - 1)
    assert f"lastword: {folder}: its name says that it is a reranker" in err
    pairs = Path(shutil.copytree(folder, tmp_path / "pairs"))
    (pairs / "chat_template.jinja").write_text(TEMPLATE)
    for command in (asked, ("search", "the cat", "a.txt", "--device", "cpu")):
        refused = run(*command, "--model", pairs)
        one_line(refused, "is for pairs of a query and a document; got a reranker")


def test_the_table(rerank) -> None:
    best = rows(rerank("the cat", "a.txt", "--json", "--top-k", "2")[1])
    status, out, _ = rerank("the cat", "a.txt", "--top-k", "2", "--quiet")
    assert status == 0
    assert out == "".join(
        f"  {row['rank']}  {row['score']:.4f}  a.txt:{row['line']}  {row['text']}\n" for row in best
    )


def test_instruction_and_threshold(rerank, folder) -> None:
    ours = Reranker(folder, device="cpu")
    expected = ours.predict(("q", "yes"), instruction="Find it")
    Path("b.txt").write_text("yes\n")
    _, out, _ = rerank("q", "b.txt", "--json", "--instruction", "Find it")
    assert abs(rows(out)[0]["score"] - float(expected)) < 1e-6
    assert not torch.isclose(ours.predict(("q", "yes")), expected, atol=1e-4)
    status, out, err = rerank("q", "b.txt", "--threshold", "0.999")
    assert (status, out) == (0, "")
    assert err.startswith("lastword: no text scores 0.999 or more; the best score is 0.")


def test_groups_are_ranked_together(rerank, monkeypatch) -> None:
    whole = rerank("the cat", "a.txt", "--json")[1]
    monkeypatch.setattr("lastword.cli.commands.rerank._GROUP", 2)
    pieces = rerank("the cat", "a.txt", "--json")[1]
    assert [row["line"] for row in rows(pieces)] == [row["line"] for row in rows(whole)]


def test_long_texts(rerank) -> None:
    Path("long.txt").write_text("short\n" + "no " * 300 + "\n")
    how = ("q", "long.txt", "--max-length", "150")
    assert rerank(*how)[2] == "lastword: 1 of 2 texts cut to 150 tokens\n"
    one_line(rerank(*how, "--on-long", "error"), "long.txt:2", "too long")
    status, out, err = rerank(
        *how, "--on-long", "error", "--on-error", "skip", "--errors", "e.jsonl"
    )
    assert (status, len(out.splitlines())) == (0, 1)
    assert err.startswith("lastword: 1 text left out because of an error; the first: long.txt:2")
    (left,) = rows(Path("e.jsonl").read_text())
    assert (left["path"], left["line"]) == ("long.txt", 2)


def test_pieces(rerank) -> None:
    pytest.importorskip("semantic_text_splitter")
    Path("long.txt").write_text("The cat sat. " * 40)
    status, out, _ = rerank("q", "long.txt", "--files", "--chunk", "30", "--top-k", "99", "--json")
    assert status == 0
    assert len(rows(out)) > 3
    one_line(rerank("q", "long.txt", "--chunk", "4095"), "--chunk", "chunks would be cut")


def test_bad_usage(rerank, run) -> None:
    one_line(run("rerank", "q", "a.txt"), "--model", "missing")
    one_line(rerank("", "a.txt"), "QUERY", "is blank")
    one_line(rerank("why " * 4000, "a.txt"), "QUERY", "leaves no room for a document")
    one_line(rerank("q", "gone.txt"), "gone.txt")
    one_line(rerank("q", "a.txt", "--top-k", "0"), "--top-k")
    one_line(run("rerank", "q", "a.txt", "--model", "gone/model"), "gone/model")


# search --rerank


def test_search_reranks_the_nearest(run, folder, tiny_checkpoint) -> None:
    Path("a.txt").write_text("\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    Path("q.txt").write_text("the cat\nno\n")
    how = (
        "search",
        "--queries",
        "q.txt",
        "a.txt",
        "--model",
        tiny_checkpoint,
        "--device",
        "cpu",
        "--json",
    )
    near = rows(run(*how, "--top-k", "3")[1])
    status, out, _ = run(*how, "--top-k", "2", "--candidates", "3", "--rerank", folder)
    assert status == 0
    for query in ("the cat", "no"):
        texts = [row["text"] for row in near if row["query"] == query]
        expected = Reranker(folder, device="cpu").rank(query, texts, 2, return_documents=True)
        found = [row for row in rows(out) if row["query"] == query]
        assert [row["text"] for row in found] == [each["text"] for each in expected]
        assert [row["rank"] for row in found] == [1, 2]
        for row, each in zip(found, expected, strict=True):
            assert abs(row["score"] - each["score"]) < 1e-6
    _, _, err = run(*how, "--rerank", folder, "--threshold", "0.9999")
    assert "2 of 2 queries: no text scores 0.9999 or more" in err


def test_bad_usage_of_search_with_a_reranker(run, folder, tiny_checkpoint) -> None:
    search = ("search", "q", "texts.txt", "--device", "cpu")
    one_line(run(*search, "--candidates", "3"), "--candidates", "is for --rerank")
    few = ("--rerank", folder, "--candidates", "2", "--top-k", "3")
    one_line(
        run(*search, *few), "--candidates: too few; got 2, expected at least --top-k, which is 3."
    )
    one_line(run(*search, "--rerank", tiny_checkpoint), "This is an embedding model.")
