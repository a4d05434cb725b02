"""No training text contains a held-out function or meaning, or a sentence of one."""

import gzip
import json
import random
from pathlib import Path

import pytest

from lastword.bench.builtin.corpus import (
    TrainingText,
    _drop_forbidden,
    _function_name,
    _how_do_i,
    _key,
    build,
)
from lastword.bench.builtin.documents import sentences

WORDS = (
    "river stone copper garden lantern meadow harbour candle winter thunder velvet marble".split()
)
PARTS = ("n", "v", "adj") * 4


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small tree in the packages' layout, and build the corpus from it."""
    root, out = (tmp_path_factory.mktemp(name) for name in ("root", "out"))
    rng = random.Random(1)
    share = root / "usr/share"
    pages = share / "doc/python3.99/html/_sources"
    pages.mkdir(parents=True)
    entries = [
        f".. function:: call_{i}(x)\n\n   Open the {_words(rng, 6)} now.\n   Then the {_words(rng, 14)}.\n"
        for i in range(120)
    ]
    (pages / "page.rst.txt").write_text("\n".join(entries), encoding="utf-8")
    (share / "man/man1").mkdir(parents=True)
    for i in range(30):
        rest = f".SH OPTIONS\nThe option {_words(rng, 30)}.\n"
        body = f".SH NAME\ntool{i} \\- close {_words(rng, 5)}\n.SH DESCRIPTION\nIt {_words(rng, 20)}.\n{rest}"
        (share / f"man/man1/tool{i}.1.gz").write_bytes(gzip.compress(body.encode()))
    (share / "dictd").mkdir()
    glosses = [f'word{i}\n    n 1: {_words(rng, 7)}; "the {_words(rng, 6)}"\n' for i in range(400)]
    glosses += [
        f"{word}\n    {part} 1: {_words(rng, 7)}\n" for word, part in zip(WORDS, PARTS, strict=True)
    ]
    (share / "dictd/wn.dict.dz").write_bytes(gzip.compress("".join(glosses).encode()))
    build(root, set(WORDS), out)
    return out


def test_both_sides_have_texts(corpus: Path) -> None:
    held = json.loads((corpus / "heldout.json").read_text())
    items = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    assert len(held["functions"]) > 20
    assert len(held["sentences"]) > 5
    assert len(items) > 100
    assert any("query" in item for item in items)


def test_composed_texts_are_of_common_words(corpus: Path) -> None:
    """The questions' slots are filled, and a passage has two or three of the kept sentences."""
    texts = [json.loads(line)["text"] for line in (corpus / "train.jsonl").read_text().splitlines()]
    asked = [text for text in texts if text.startswith("what is the difference between")]
    assert asked
    assert {asked[0].split()[6], asked[0].split()[9].rstrip("?")} <= set(WORDS)
    assert not any("{" in text for text in texts)
    assert any(text.count(".") == 3 and text[0].isupper() for text in texts)


def test_no_held_out_text_is_trained_on(corpus: Path) -> None:
    held = json.loads((corpus / "heldout.json").read_text())
    secret = {_key(text) for text in held["sentences"]}
    secret |= {_key(text.partition(": ")[2]) for text in held["sentences"]} - {""}
    for function in held["functions"]:
        secret.add(_key(function["query"]))
        secret |= {_key(part) for part in sentences(function["text"].partition(": ")[2])}
    for line in (corpus / "train.jsonl").read_text().splitlines():
        item = json.loads(line)
        shown = {_key(item["text"]), _key(item["text"].partition(": ")[2])}
        shown |= {_key(part) for part in sentences(item["text"])} | {_key(item.get("query", ""))}
        assert not shown & secret


def test_repeats_and_forbidden_texts_are_dropped() -> None:
    texts = [TrainingText(each) for each in ("One text.", "one  TEXT", "a: kept out of it here")]
    again = [_drop_forbidden(texts, forbidden) for forbidden in (set(), {"kept out of it here"})]
    assert [[item.text for item in items] for items in again] == [
        ["One text.", "a: kept out of it here"],
        ["One text."],
    ]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("shutil.copyfile(src, dst)", "copyfile"),
        ("int PySys_Go(const char *s)", "pysys_go"),
        ("accept, accept4", "accept"),
        ("git-add", "git-add"),
        ("Turner.last", "last"),
    ],
)
def test_names_that_decide_the_side(name: str, function: str) -> None:
    assert _function_name(name) == function


@pytest.mark.parametrize(
    ("summary", "question"),
    [
        ("Copy the file src.", "how do I copy the file src?"),
        ("Returns the size.", "how do I get the size?"),
        ("The size of it.", None),
        ("Copy.", None),
    ],
)
def test_questions_from_summaries(summary: str, question: str | None) -> None:
    assert _how_do_i(summary) == question
