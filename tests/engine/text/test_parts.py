"""Tokenising a long text part by part gives the tokens of the whole, for any text, from either end."""

import os
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from helpers.messages import refusal
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

import lastword
from lastword.bench.checkpoint import make_tokenizer
from lastword.errors import InputError
from lastword.text import parts, split_points
from lastword.text.tokenizer import TextTokenizer

DATA = os.environ.get("LASTWORD_TEST_DATA")
SCRIPTS = (
    "the quick brown ab a 東京 。 ， が か\u3099 한 각 \u1112\u1161\u11ab \u11ab กำ ที่ นี่ ा क क\u093c မြန် ើ தமி "
    "ß ſ İ Σ ς µ ﬁ ½ Ⅷ ² 𠀀 é e\u0301 \u0301 \u0323\u0301 Å 🙂 🎉 👩\u200d👧 \u200d \u200b 1 42 ١ = == - "
    "' 's 'LL ’ . , ! / + _ < | > [ ]"
).split(" ")
SPACES = " |  |\n|\r\n|\t|\u3000|\u00a0|\u2028|\x00|\x1c|\x85|\u180e|\ufeff".split("|")
SPECIALS = ["<|endoftext|>", "<|im_", "start|>", "<|im_end|>", "[END]", "[UNK]", "END]"]
PIECES = [*SCRIPTS, *SPACES, *SPECIALS]

# Runs of one or two pieces, which leave few places to split, between texts of any pieces.
runs = st.builds(
    lambda pieces, times: "".join(pieces) * times,
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=2),
    st.integers(1, 400),
)
anything = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
texts = st.lists(runs | anything, min_size=1, max_size=4).map("".join)


class Both:
    """A tokenizer that keeps the beginning, one that keeps the end, and the library's own."""

    def __init__(self, folder: Path) -> None:
        self.right = TextTokenizer(folder, 200_000, truncation_side="right")
        self.left = TextTokenizer(folder, 200_000, truncation_side="left")
        self.whole = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def check(self, text: str, kept: int, prompt: str = "") -> None:
        """Compare both ends of a text with those of its tokens as a whole."""
        ids = self.whole.encode(prompt + text, add_special_tokens=False).ids
        for ours, expected in (
            (self.right, ids[:kept]),
            (self.left, ids[max(len(ids) - kept, 0) :]),
        ):
            template = ours.num_template_tokens
            try:
                tokens = ours.encode([text], kept + template, prompt=prompt)
            except InputError as error:  # a check inside a word may fail, but in a long one only
                assert "no place to split it" in error.what  # noqa: PT017
                assert len(prompt + text) > ours._parts._longest
                continue
            assert tokens.ids == [ours.before + expected + ours.after]
            assert tokens.cut == [len(ids) > kept]


BUILTIN = Path(lastword.weights.__file__).parent / "builtin"


@pytest.fixture(scope="module", params=["synthetic", "builtin", "Qwen3-Embedding-0.6B"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    if request.param == "builtin":
        return Both(BUILTIN)
    if request.param == "synthetic":
        folder = tmp_path_factory.mktemp("tokenizer")
        make_tokenizer([" ".join(PIECES) * 3, "=" * 99 + " " * 99, "ab" * 99]).save(
            str(folder / "tokenizer.json")
        )
        return Both(folder)
    if not DATA:
        pytest.skip("LASTWORD_TEST_DATA is not set")
    return Both(Path(DATA, "tokenizers", request.param))


@pytest.fixture(params=[96, 512])
def short_parts(request: pytest.FixtureRequest, both: Both) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for ours in (both.right, both.left):
            patch.setattr(ours._parts, "_longest", 3 * request.param)
        patch.setattr(parts, "PART_CHARS", request.param)
        patch.setattr(parts, "_LEAST_CHARS", 16)
        patch.setattr(parts, "_UNSETTLED", request.param // 8)
        yield


@given(
    text=texts, kept=st.sampled_from([1, 2, 9, 60, 300, 10**6]), split=st.sampled_from([0, 1, 9])
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(text="'" + "’e\u0301" * 200, kept=89, split=0)
@example(text="-" * 83 + "Σ東京+[UNK]\u0301" + "-" * 285, kept=12, split=0)
@example(text="a" * 3000 + "\u0301.", kept=60, split=0)
@example(text="a" * 3000 + " b", kept=60, split=0)
@pytest.mark.usefixtures("short_parts")
def test_parts_give_the_tokens_of_the_whole(both: Both, text: str, kept: int, split: int) -> None:
    both.check(text[split:], kept, prompt=text[:split])


@pytest.mark.soak
@given(
    text=texts, kept=st.sampled_from([1, 2, 9, 60, 300, 10**6]), split=st.sampled_from([0, 1, 9])
)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.usefixtures("short_parts")
def test_many_parts_give_the_tokens_of_the_whole(
    both: Both, text: str, kept: int, split: int
) -> None:
    both.check(text[split:], kept, prompt=text[:split])


def test_few_characters_of_a_long_text_are_tokenised(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 20_000
    seen: list[int] = []
    for ours in (both.right, both.left):
        batch = ours._calls._batch
        monkeypatch.setattr(
            ours._calls, "_batch", lambda t, i, b=batch: seen.extend(map(len, t)) or b(t, i)
        )
        ours.encode([text], 512)
    assert len(seen) == 2
    assert max(seen) < 8192


def test_a_text_that_nobody_waits_for_is_left(both: Both) -> None:
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(CancelledError):
        both.right.encode([" . \n" * 200_000], 10**9, stopped=stopped)
    assert len(asked) == 3


# What a long text consists of, and the tokenizers that can split it.
LONG_WORDS = {
    "digits": ("0123456789", "all"),
    "base64": ("QUJDRA0kX2abF+/z9", "all"),
    "letters": ("QUJDRAkXabFz", "all"),
    "hexadecimal": ("0123456789abcdef", "all"),
    "one letter": ("a", "all"),
    "spaces": (" ", "all"),
    "signs": ("=", "all"),
    "han": ("東京都日本国", "all"),
    "thai": ("ภาษาไทยเป็นภาษาที่มีระดับเสียง", "qwen"),
    "khmer": ("ភាសាខ្មែរ", "qwen"),
    "emoji": ("🙂🎉🚀", "qwen"),
    "marks": ("\u0301\u0323", "none"),
    "joined emoji": ("👩\u200d", "none"),
}


@pytest.mark.timing
@pytest.mark.parametrize("kind", LONG_WORDS)
def test_a_long_word_is_split_or_refused(
    both: Both, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece, which = LONG_WORDS[kind]
    text = piece * (270_000 // len(piece))
    is_bert = both.right.path.parent == BUILTIN
    for ours in (both.right, both.left):
        monkeypatch.setattr(ours._parts, "_longest", 135_000)
        if which == "all" or (which == "qwen" and not is_bert):
            ours.encode([text], 300)
        else:
            with refusal(
                InputError,
                where="text 3",
                what="too long to tokenise, and no place to split it is known",
                got="a part of more than 135,000 characters",
                index=3,
            ):
                ours.encode([text], 300, first=3)


def test_a_tokenizer_of_another_kind_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lastword.text.tokenizer.LONGEST_PART", 4000)
    other = make_tokenizer()
    other.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("a", "bb")])
    other.save(str(tmp_path / "tokenizer.json"))
    both = Both(tmp_path)
    both.check("a b" * 666, 5)
    with refusal(InputError, where="text 0", index=0):
        both.right.encode(["a b" * 667], 8)


def test_the_classes_hold_what_they_say() -> None:
    """Unicode's own tables: letters are letters, and no character is changed by what comes before it."""
    every = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    letters = re.compile(f"[{split_points._LETTERS}{split_points._CJK}]")
    found = [c for c in every if letters.match(c)]
    assert all(unicodedata.category(c)[0] == "L" for c in found)
    others = split_points._SYMBOLS | split_points._SIGNS
    assert not any(unicodedata.category(c)[0] in "LNZ" or c.isspace() for c in others)
    assert all(unicodedata.category(c) == "Nd" for c in split_points._DIGITS)
    seconds = {
        unicodedata.normalize("NFD", c)[-1]
        for c in every
        if len(unicodedata.normalize("NFD", c)) > 1
    }
    blanks = split_points._BLANKS | split_points._NEWLINES
    for c in {*found, *others, *split_points._DIGITS, *blanks}:
        first = unicodedata.normalize("NFD", c)[0]
        assert not unicodedata.combining(first)
        assert first not in seconds
