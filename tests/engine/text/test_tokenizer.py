"""Token ids compared with transformers' tokenizer, and the cuts that must not change them."""

import hashlib
import os
import random
from pathlib import Path

import pytest
from helpers.messages import refusal
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from lastword.bench.checkpoint import END, make_tokenizer
from lastword.errors import ConfigError, InputError, WeightsError
from lastword.model_info import ModelInfo
from lastword.text.tokenizer import TextTokenizer

DATA = os.environ.get("LASTWORD_TEST_DATA")
REAL = ["Qwen3-Embedding-0.6B", "Qwen3-Embedding-4B", "Qwen3"]
needs_data = pytest.mark.skipif(not DATA, reason="LASTWORD_TEST_DATA is not set")
WORDS = "the quick brown fox can't won't jumps Über straße naïve 你好 世界 東京 안녕 мир שלום 🙂 👩‍👩‍👧 x1 3.14".split()
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<think>", "</think>", "<tool_call>", "<|im_end|>"]
SPACES = ["", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", " \n \n", "\u200d", "\ufeff", "\0"]


def random_text(draw: random.Random) -> str:
    """Make a short string of words, special tokens, spaces and code points of every plane."""
    parts = []
    for _ in range(draw.randrange(8)):
        kind = draw.randrange(5)
        if kind == 0:
            parts.append(draw.choice(SPECIALS))
        elif kind == 1:
            points = [
                draw.choice([draw.randrange(0x20, 0x3000), draw.randrange(0x110000)])
                for _ in range(4)
            ]
            parts += [chr(p) for p in points if not 0xD800 <= p < 0xE000]
        else:
            parts.append(draw.choice(WORDS))
        parts.append(draw.choice(SPACES))
    return "".join(parts)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer([" ".join(WORDS) * 20]).save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder, 100_000)


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_20_000_strings_match_transformers(name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = Path(DATA or "") / "tokenizers" / name
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ours = TextTokenizer(folder, 151_936)
    draw = random.Random(name)
    texts = [text for text in (random_text(draw) for _ in range(20_500)) if text][:20_000]
    if ours.after:
        texts[0] = ""
    expected = theirs(texts)["input_ids"]
    assert ours.encode(texts, 32_768).ids == expected
    cut = theirs(texts[:2000], truncation=True, max_length=5)["input_ids"]
    assert ours.encode(texts[:2000], 5).ids == cut


@needs_data
def test_templates_come_from_the_file() -> None:
    folder = Path(DATA or "") / "tokenizers"
    embedding = TextTokenizer(folder / "Qwen3-Embedding-4B", 151_665)
    assert (embedding.before, embedding.after) == ([], [151_643])
    assert embedding.encode([""], 10).ids == [[151_643]]
    base = TextTokenizer(folder / "Qwen3", 151_669)
    assert (base.before, base.after) == ([], [])
    with refusal(InputError, where="text 7", what="gives no token", index=7):
        base.encode(["a", ""], 10, first=6)
    with refusal(WeightsError, got="id 151668", expected="below 151665"):
        TextTokenizer(folder / "Qwen3-Embedding-0.6B", 151_665)


def long_texts() -> dict[str, str]:
    draw = random.Random(1)
    prose = " ".join(draw.choice(WORDS) for _ in range(20_000))
    return {
        "prose": prose,
        "mixed": "".join(random_text(draw) for _ in range(6_000)),
        "spaces": " " * 50_000 + prose,
        "letters": "ab" * 40_000,
        "cjk": "東京は日本の首都です。" * 8_000,
        "newlines": "a line of text\n\n  \n" * 8_000,
        "specials": "<|endoftext|>".join(["word"] * 8_000),
        "combining": "e\u0301 a\u0300b " * 20_000,
    }


@pytest.mark.parametrize("name", long_texts())
@pytest.mark.parametrize("max_length", [2, 17, 512])
def test_an_early_cut_changes_nothing(name: str, max_length: int, synthetic: TextTokenizer) -> None:
    text = long_texts()[name]
    whole = Tokenizer.from_file(str(synthetic.path)).encode(text).ids
    tokens = synthetic.encode([text, "short"], max_length)
    assert tokens.ids[0] == whole[: max_length - 1] + whole[-1:]
    assert tokens.cut[0]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_truncation_keeps_the_end(extra: int, synthetic: TextTokenizer) -> None:
    whole = synthetic.encode(["the quick brown fox jumps"], 1000).ids[0]
    tokens = synthetic.encode(["the quick brown fox jumps"], len(whole) + extra)
    assert tokens.cut == [extra < 0]
    assert tokens.ids[0][-1] == whole[-1]
    assert len(tokens.ids[0]) == len(whole) + min(extra, 0)


def test_lone_surrogates_are_named(synthetic: TextTokenizer) -> None:
    for texts, prompt, index in (
        (["fine", "abc\ud800"], "", 1),
        (["abc\ud800"], "fifty characters of a prompt " * 2, 0),
    ):
        with pytest.raises(InputError) as caught:
            synthetic.encode(texts, 10, prompt=prompt)
        error = caught.value
        assert (error.where, error.index) == (f"text {index}", index)
        assert error.what == "not valid Unicode"
        assert error.got == "the lone surrogate U+D800 at character 3"


def test_a_prompt_goes_before_every_text(synthetic: TextTokenizer) -> None:
    texts = ["the quick", "", "brown fox " * 900]
    prompted = synthetic.encode(texts, 20, prompt="jumps ")
    assert prompted == synthetic.encode(["jumps " + text for text in texts], 20)


def test_a_template_that_changes_the_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    made = make_tokenizer(["a b c"])
    end = (END, made.token_to_id(END))
    made.post_processor = TemplateProcessing(single=END, pair="$A $B", special_tokens=[end])
    made.save(str(file))
    with pytest.raises(ConfigError) as caught:
        TextTokenizer(tmp_path, 100_000)
    assert caught.value.where == str(file)
    assert caught.value.what == "its template rewrites the text"


def test_a_missing_end_token_would_be_seen(tmp_path: Path) -> None:
    make_tokenizer(["a b c"], end_token=False).save(str(tmp_path / "tokenizer.json"))
    bare = TextTokenizer(tmp_path, 100_000)
    assert bare.after == []
    with refusal(InputError, what="gives no token", got="''"):
        bare.encode([""], 10)


def test_the_file_is_hashed_once(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    make_tokenizer(["a b c"]).save(str(file))
    tokenizer = TextTokenizer(tmp_path, 100_000)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert tokenizer.file_hash == expected
    file.unlink()
    assert tokenizer.file_hash == expected


@pytest.mark.parametrize("extra", [-3, -1, 0, 1])
def test_truncation_on_the_left_keeps_the_end(extra: int, synthetic: TextTokenizer) -> None:
    left = TextTokenizer(synthetic.path.parent, 100_000, truncation_side="left")
    whole = synthetic.encode(["the quick brown fox jumps"], 1000).ids[0]
    limit = len(whole) + extra
    tokens = left.encode(["quick brown fox jumps"], limit, prompt="the ")
    assert tokens.ids == [whole[-limit:]]
    assert tokens.cut == [extra < 0]


WORD = models.WordPiece(
    {"[UNK]": 0, "a": 1, "##a": 2}, unk_token="[UNK]", max_input_chars_per_word=9
)
LETTERS = models.BPE({"a": 0, "[END]": 1}, [], unk_token="[END]")
UNKNOWN = {
    "word pieces": (WORD, {"a a": 0, "aaaaaaaaa a": 0, "a aaaaaaaaaa": 1, "a b": 1, "b b": 1}, 9),
    "words": (models.WordLevel({"a": 0, "b": 1}, unk_token="b"), {"a a": 0, "a x": 1, "a b": 1}, None),
    "unigram": (models.Unigram([("a", -1.0), ("?", -2.0)], unk_id=1), {"a": 0, "ax": 1}, None),
    "no unknown token": (models.BPE({"a": 0, "b": 1}, []), {"a b": 0, "ax": 0}, None),
    "the end token": (LETTERS, {"a a": 0, "a x": 1}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_texts_with_unknown_words_are_counted(name: str, tmp_path: Path) -> None:
    model, texts, longest = UNKNOWN[name]
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if name == "the end token":
        made.post_processor = TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path, 9)
    assert tokenizer.longest_word == longest
    for text, count in texts.items():
        good = tokenizer.encode_good([text, "a", text], 50)
        assert good.unknown == 2 * count, text
        if count:
            unknown = [word for word in text.split() if tokenizer.encode_good([word], 50).unknown]
            assert good.unknown_word, text
            assert good.unknown_word in (unknown or [text.strip()])[0], text


@pytest.mark.parametrize(
    ("text", "count"),
    [("\u200b", 1), ("\ue000\u00ad", 1), ("a\u200bb", 0), ("", 0), (" \n", 0), ("\u00a0", 0)],
)
def test_a_text_of_which_the_tokenizer_keeps_nothing_is_unknown(text: str, count: int) -> None:
    tokenizer = ModelInfo(None).tokenizer
    for prompt in ("", "about words: "):
        assert tokenizer.encode_good([text, "a"], 50, prompt=prompt).unknown == count


def test_no_byte_is_unknown(synthetic: TextTokenizer) -> None:
    assert synthetic.encode_good(["x" * 500, "\U0001f94a", "ß", "<|endoftext|>"], 50).unknown == 0


def test_an_unknown_word_is_looked_for_once_per_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path, 9)
    looked: list[str] = []
    real = tokenizer._unknown_word

    def look(text: str) -> str:
        looked.append(text)
        return real(text)

    monkeypatch.setattr(tokenizer, "_unknown_word", look)
    good = tokenizer.encode_good(["a", "a a"] * 50, 50, prompt="strange: ")
    assert (good.unknown, good.unknown_word) == (100, "strange:")
    assert looked == ["a", "strange: "]
