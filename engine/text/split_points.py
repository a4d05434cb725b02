"""Where a long text can be split so that the tokens of its parts are the tokens of the whole.

Tokenising a text in one piece takes hundreds of bytes of memory per character and cannot be interrupted. Split points
are known for two pipelines, Qwen's and BERT's; with any other tokenizer, a text is one part. (Texts are cut to
`max_length` elsewhere: in `TextTokenizer.encode`.) Three facts make a split point safe:

- Normaliser. The character after the point neither composes nor changes places with the characters before it. This is
  true of all characters named in this module, under NFC and NFD.
- Words. The pre-tokenizer finds the same words in the parts as in the whole. Qwen's pattern looks ahead by one
  character, farther only over white space, and never back. BERT's pre-tokenizer splits at white space and punctuation.
- Added tokens. None lies across the point, because a character next to the point occurs in no added token.

Inside a word there is no such point. With Qwen's tokenizer, a very long word can still be split where a check succeeds.
Let u and v be two strings whose tokens are t1 … ti and s1 … sk. If the strings of ti and s1, joined, have the tokens
[ti, s1], then uv has the tokens t1 … ti s1 … sk. Proof: suppose that some merge crosses the border, and consider the
first that does. Until then the merges on each side are those of u and of v alone, because each merge is the
lowest-ranking, leftmost one. So the two symbols at the border are parts of ti and of s1, and these two regions have
been merged in exactly the order in which they are merged when ti s1 is tokenised alone. There the same two symbols
would meet and be merged: a contradiction.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

# The word pattern of every Qwen2 and Qwen3 tokenizer.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _span(*ranges: tuple[int, int]) -> str:
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


def _characters(*ranges: tuple[int, int]) -> frozenset[str]:
    return frozenset(chr(point) for first, last in ranges for point in range(first, last + 1))


# Letters of the common scripts, for use inside the brackets of a regular expression: category L in every version of
# Unicode since 6.0, and nothing before them composes with them.
_LETTERS = _span(
    (0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x391, 0x3A1), (0x3A3, 0x3CE),
    (0x400, 0x481), (0x48A, 0x523), (0x531, 0x556), (0x561, 0x586), (0x5D0, 0x5EA), (0x621, 0x63A), (0x641, 0x64A),
    (0x671, 0x6B7), (0x905, 0x939), (0xE01, 0xE30), (0x1000, 0x102A), (0x10D0, 0x10F0), (0x1780, 0x17B3),
    (0x1E00, 0x1EFF), (0x3041, 0x3096), (0x30A1, 0x30FA), (0xAC00, 0xD7A3),
)  # fmt: skip
_CJK = _span((0x3400, 0x4DB5), (0x4E00, 0x9FA5), (0x20000, 0x2A6D6))
_PUNCTUATION = _characters((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E))
# Neither letters nor numbers nor white space: signs, punctuation of East Asia, emoji.
_SYMBOLS = _PUNCTUATION | _characters(
    (0xA1, 0xA9), (0x2010, 0x2027), (0x2030, 0x205E), (0x2190, 0x21FF), (0x2500, 0x257F), (0x2600, 0x26FF),
    (0x3001, 0x3003), (0x3008, 0x3020), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0x1F300, 0x1F320),
    (0x1F380, 0x1F393), (0x1F400, 0x1F43E), (0x1F442, 0x1F4F7), (0x1F600, 0x1F64F), (0x1F680, 0x1F6C5),
)  # fmt: skip
# Vowel signs of Thai, Hindi, Burmese and Khmer: they are not letters, and normalisation does not move them.
_SIGNS = _characters(
    (0xE31, 0xE31),
    (0xE34, 0xE37),
    (0x93E, 0x94C),
    (0x102B, 0x102D),
    (0x102F, 0x1032),
    (0x17B6, 0x17C5),
)
_DIGITS = _characters(
    (0x30, 0x39), (0x660, 0x669), (0x966, 0x96F), (0xE50, 0xE59), (0xFF10, 0xFF19)
)
_NEWLINES = frozenset("\r\n")
_BLANKS = frozenset(" \t\u3000")  # white space except newlines


@dataclass(frozen=True, slots=True)
class SplitPoints:
    """Where the texts of one tokenizer can be split.

    Args:
        anywhere: a zero-width pattern that matches at every safe split point.
        inner: a zero-width pattern that matches inside words, where a split point is safe if the tokens next to it
            pass the check that the module's docstring proves; None if there are no such points.
        blanks: the characters allowed in white space before a split point inside a word.
        unknown: a pattern for a run of characters so long that its word becomes one unknown token, however long the
            run; None if no run does that.
        context: number of characters before and after a point that the patterns look at.
    """

    anywhere: re.Pattern[str]
    inner: re.Pattern[str] | None = None
    blanks: str = ""
    unknown: re.Pattern[str] | None = None
    context: int = 1


def find_split_points(tokenizer: Tokenizer, vocabulary: Mapping[str, int]) -> SplitPoints | None:
    """Return where texts can be split without changing their tokens; None if that is not known for this tokenizer.

    Args:
        tokenizer: the tokenizer.
        vocabulary: its tokens and their ids, added tokens included.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    contents = [token.content for token in added]
    words, normalizer = _state(tokenizer.pre_tokenizer), _state(tokenizer.normalizer)
    if _has_qwen_words(words) and normalizer.get("type", "NFC") == "NFC":
        return _qwen_points(contents, inner=_merges_bytes(tokenizer.model, vocabulary))
    bert = words.get("type") == "BertPreTokenizer" and normalizer.get("type") == "BertNormalizer"
    if bert and not any(token.normalized for token in added):
        return _bert_points(contents, tokenizer.model, cjk=normalizer["handle_chinese_chars"])
    return None


def has_qwen_pipeline(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer normalises texts and splits them into words as Qwen's tokenizers do."""
    words, normalizer = _state(tokenizer.pre_tokenizer), _state(tokenizer.normalizer)
    return _has_qwen_words(words) and normalizer.get("type") == "NFC"


def _state(part: Any) -> dict[str, Any]:
    """Return the settings of one part of the pipeline, as in tokenizer.json; {} if the part is None."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _has_qwen_words(words: Mapping[str, Any]) -> bool:
    steps = words.get("pretokenizers", [])
    return (
        len(steps) == 2
        and steps[0].get("pattern") == {"Regex": QWEN_WORDS}
        and steps[0].get("behavior") == "Isolated"
        and not steps[0].get("invert")
        and steps[1].get("type") == "ByteLevel"
        and not steps[1].get("use_regex")
        and not steps[1].get("add_prefix_space")
    )


def _merges_bytes(model: Any, vocabulary: Mapping[str, int]) -> bool:
    """Return whether the model merges bytes as the proof assumes: always the lowest-ranking, leftmost pair."""
    return (
        isinstance(model, models.BPE)
        and not (model.dropout or model.ignore_merges or model.byte_fallback)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and all(symbol in vocabulary for symbol in pre_tokenizers.ByteLevel.alphabet())
        and len(set(vocabulary.values())) == len(vocabulary)
    )


def _qwen_points(contents: Sequence[str], *, inner: bool) -> SplitPoints:
    """Return the split points for Qwen's word pattern: places where a word ends, whatever follows."""
    used = frozenset("".join(contents))
    letters = f"[{_LETTERS}{_CJK}]"
    starters = f"[{_LETTERS}{_CJK}{_inside(_SYMBOLS | _SIGNS | _DIGITS)}]"
    blanks, digits = _inside(_BLANKS - used), _inside(_DIGITS - used)
    nonletters = _inside((_SYMBOLS | _SIGNS | _DIGITS | _NEWLINES | _BLANKS) - used)
    places = [
        rf"(?<=[^\s\u180e])(?=[{blanks}])",  # before white space
        f"(?<={letters})(?=[{nonletters}])",  # after the letters of a word
        f"(?<=[{digits}])(?={starters}|[{_inside(_NEWLINES | _BLANKS)}])",  # after a digit, which is a word by itself
        f"(?<=[{_inside(_NEWLINES - used)}])(?={starters})",  # after the last newline
    ]
    anywhere = re.compile("|".join(place for place in places if "[]" not in place))
    reach = max(map(len, contents), default=1)
    if not inner:
        return SplitPoints(anywhere)
    symbols = _inside(_SYMBOLS - used)
    runs = [f"(?<=[{symbols}])(?=[{symbols}]{{2}})", f"(?<=[{blanks}])(?=[{blanks}]{{2}})"]
    if not any(re.fullmatch(f"{letters}*", content) for content in contents):
        # On each side are as many letters as the longest added token has characters, so none can lie across.
        runs.append(f"(?<={letters}{{{reach}}})(?={letters}{{{reach}}})")
    pattern = re.compile("|".join(run for run in runs if "[]" not in run))
    return SplitPoints(anywhere, pattern, "".join(_BLANKS - used), context=max(2, reach))


def _bert_points(contents: Sequence[str], model: Any, *, cjk: bool) -> SplitPoints:
    """Return the split points for BERT's words: before and after white space, punctuation, and Chinese characters."""
    used = frozenset("".join(contents))
    ends = _inside((_BLANKS | _NEWLINES | _PUNCTUATION) - used) + (_CJK if cjk else "")
    anywhere = re.compile(f"(?<=[{ends}])|(?=[{ends}])")
    unknown = None
    if isinstance(model, models.WordPiece) and not any(content.isalnum() for content in contents):
        # Normalising turns each letter or digit into at least one character. An added token may take some of these
        # characters at either end.
        least = model.max_input_chars_per_word + 1 + 2 * max(map(len, contents), default=0)
        unknown = re.compile(f"[0-9{_LETTERS}]{{{least},}}")
    return SplitPoints(anywhere, unknown=unknown)


def _inside(characters: Iterable[str]) -> str:
    """Escape characters for use inside the brackets of a regular expression."""
    return "".join(re.escape(character) for character in sorted(characters))
