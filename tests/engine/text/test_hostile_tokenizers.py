"""A tokenizer.json that is damaged or hostile, and texts on which a tokenizer fails: one error of ours each."""

import json
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from helpers.messages import refusal

import lastword
from lastword.errors import ConfigError, InputError, LastwordError, WeightsError
from lastword.text import calls
from lastword.text.tokenizer import TextTokenizer
from lastword.weights.files.companions import read_vocabulary
from lastword.weights.files.tokenizer_file import translate_faults

BUILTIN = json.loads(
    (Path(lastword.weights.__file__).parent / "builtin/tokenizer.json").read_text("utf-8")
)
VOCABULARY = len(BUILTIN["model"]["vocab"])
OTHER = "Use the tokenizer that belongs to these weights."
AGAIN = "Fetch the file again."

Mutation = Callable[[dict[str, Any]], object]


def write(folder: Path, mutate: Mutation) -> Path:
    """Write the built-in model's tokenizer.json with a mutation; return the file."""
    values = deepcopy(BUILTIN)
    mutate(values)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def template(*pieces: str, ids: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Make a template of `A`, `B` and `[END]`, whose ids are given."""
    end = {"SpecialToken": {"id": "[END]", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [end if p == "[END]" else {"Sequence": {"id": p, "type_id": 0}} for p in pieces],
        "pair": [{"Sequence": {"id": p, "type_id": 0}} for p in "AB"],
        "special_tokens": {"[END]": {"id": "[END]", "ids": list(ids), "tokens": ["[END]"] * len(ids)}},
    }  # fmt: skip


def processor(value: object) -> Mutation:
    return lambda values: values.update(post_processor=value)


def model(**settings: object) -> Mutation:
    return lambda values: values.update(model=settings)


def normalizer(*rules: dict[str, object]) -> Mutation:
    return lambda values: values.update(
        normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *rules]}
    )


def replace(old: dict[str, str], new: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": old, "content": new}


def split(pattern: str) -> Mutation:
    return lambda values: values.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    )  # fmt: skip


def beyond(highest: int) -> dict[str, object]:
    return {
        "what": "token ids go beyond the embedding table", "got": f"id {highest}",
        "expected": f"below {VOCABULARY}", "remedy": OTHER,
    }  # fmt: skip


REWRITES = {
    "what": "its template rewrites the text",
    "expected": "one that only adds tokens around it",
}
TOO_LONG = {
    "what": "its normaliser makes texts too long",
    "expected": "at most 64",
    "remedy": OTHER,
}
FAILS = {"what": "cannot tokenise a text", "remedy": AGAIN}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
BIG = template("A", "[END]", ids=(0, VOCABULARY))
AT_LOAD: dict[str, tuple[Mutation, type[LastwordError], dict[str, object]]] = {
    "template": (processor(BIG), WeightsError, beyond(VOCABULARY)),
    "template before": (
        processor(template("[END]", "A", ids=(2**32 - 1,))), WeightsError, beyond(2**32 - 1)),
    "template in a sequence": (
        processor({"type": "Sequence", "processors": [BYTES, BIG]}),
        WeightsError, beyond(VOCABULARY)),
    "bert's template": (
        processor({"type": "BertProcessing", "sep": ["[END]", 10**6], "cls": ["[END]", 0]}),
        WeightsError, beyond(10**6)),
    "roberta's template": (
        processor({"type": "RobertaProcessing", "sep": ["[END]", 0], "cls": ["[END]", 10**6],
                   "trim_offsets": True, "add_prefix_space": True}),
        WeightsError, beyond(10**6)),
    "vocabulary": (
        lambda values: values["model"]["vocab"].update(zzz=10**9), WeightsError, beyond(10**9)),
    "unigram": (
        model(type="Unigram", unk_id=0, vocab=[[f"[END]{i % 2}", -1.0] for i in range(VOCABULARY + 1)] + [["a", 0.0]]),
        WeightsError, beyond(VOCABULARY + 3)),
    "the text twice": (processor(template("A", "A")), ConfigError, REWRITES),
    "no text": (processor(template("[END]")), ConfigError, REWRITES),
    "another text": (processor(template("B")), WeightsError, FAILS),
    "no known word": (model(type="WordLevel", vocab={"zzz": 5}, unk_token="[NO]"), WeightsError, FAILS),
    "doubling": (normalizer(*[replace({"String": "a"}, "aa")] * 40), ConfigError,
                 TOO_LONG | {"got": "up to 1,000,000,000 characters for one"}),
    "long content": (normalizer(replace({"String": "a"}, "b" * 65)), ConfigError,
                     TOO_LONG | {"got": "up to 65 characters for one"}),
    "empty pattern": (normalizer(replace({"Regex": "b*"}, "b" * 64)), ConfigError,
                      TOO_LONG | {"got": "up to 65 characters for one"}),
    "long beginning": (normalizer({"type": "Prepend", "prepend": "b" * 99}), ConfigError,
                       TOO_LONG | {"got": "up to 100 characters for one"}),
    "broken map": (normalizer({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
                   WeightsError, {"remedy": AGAIN}),
    "broken pattern": (split("("), WeightsError, {"remedy": AGAIN}),
    "no length": (lambda values: values.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
                  WeightsError, FAILS),
    "dropout": (model(type="BPE", dropout=0.5, vocab={"a": 0}, merges=[], unk_token=None,
                      continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False),
                ConfigError, {"what": "the tokenizer is random", "got": "dropout 0.5", "expected": "none"}),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_LOAD)
def test_a_file_is_refused(name: str, tmp_path: Path) -> None:
    mutate, kind, parts = AT_LOAD[name]
    file = write(tmp_path, mutate)
    with refusal(kind, where=str(file), **parts):
        TextTokenizer(tmp_path, VOCABULARY)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:83cdf8c3\nsize 11422654\n"
    for content, what in ((pointer, "a Git LFS pointer"), ("{}", "not a tokenizer (")):
        file.write_text(content, encoding="utf-8")
        for read in (
            lambda: TextTokenizer(tmp_path, VOCABULARY),
            lambda: read_vocabulary(tmp_path),
        ):
            with pytest.raises(WeightsError) as caught:
                read()
            assert caught.value.where == str(file)
            assert what in str(caught.value)


TEXTS = ["a fine text", "a" * 30, "another"]
AT_A_TEXT: dict[str, tuple[Mutation, str]] = {
    "no unknown token": (
        lambda values: values["model"].update(unk_token="[NO]", max_input_chars_per_word=20),
        "Missing [UNK] token"),
    "catastrophic pattern": (split("(a+)+b"), "retry-limit-in-match"),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_A_TEXT)
def test_a_text_on_which_it_fails_is_named(name: str, tmp_path: Path) -> None:
    mutate, reason = AT_A_TEXT[name]
    write(tmp_path, mutate)
    tokenizer = TextTokenizer(tmp_path, VOCABULARY)
    with pytest.raises(InputError) as caught:
        tokenizer.encode(TEXTS, 50, first=6)
    error = caught.value
    assert (error.where, error.index) == ("text 7", 7)
    assert error.what == "the tokenizer fails on it"
    assert reason in str(error.got)
    assert tokenizer.encode([TEXTS[0], TEXTS[2]], 50).cut == [False, False]


def test_a_pattern_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, split("(a+)+b"))
    tokenizer = TextTokenizer(tmp_path, VOCABULARY)
    monkeypatch.setattr(calls, "_SECONDS", 0.2)
    began = time.monotonic()
    with refusal(
        InputError,
        where="text 3",
        what="the tokenizer takes longer than 0.2 s",
        remedy="The patterns in the model's tokenizer.json are too slow for such a text.",
        index=3,
    ):
        tokenizer.encode(
            [("a" * 21 + " ") * 60], 50, first=3
        )  # each word takes a tenth of a second
    assert time.monotonic() - began < 5
    assert any(thread.name == "lastword-tokenize" for thread in threading.enumerate())


def test_an_interruption_stays_itself() -> None:
    for kind in (KeyboardInterrupt, SystemExit, MemoryError, ConfigError):
        error = kind("a", "b")
        with (
            pytest.raises(kind) as caught,
            translate_faults(lambda reason: WeightsError("x", reason)),
        ):
            raise error
        assert caught.value is error
