"""Turn texts into token ids with the checkpoint's tokenizer.json: its template, its end token, and nothing else.

The tokenizer is shared and never modified after loading, so truncation is done here. This module knows nothing about
prompt names, weights or batches.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer

from lastword.errors import ConfigError, InputError, WeightsError, not_unicode

# Which end of a too long text is cut away.
TruncationSide = Literal["right", "left"]

# Of a text with more characters per allowed token, only a prefix is tokenised first. English has 4 to 5 per token.
_CHARS_PER_TOKEN = 8

# The word pattern of every Qwen2 and Qwen3 tokenizer. In this pattern a word always ends between a letter and a
# non-letter, whatever follows: cutting a text there does not change the tokens before the cut.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A letter that composes with no following character, before a character that composes with no preceding one (NFC).
_SAFE_CUT = re.compile(
    "[A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff](?=[ \\n.,;:!?\u3001\u3002\uff0c\uff01\uff1f\uff1b\uff1a])"
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token ids of a list of texts, and for each text whether it was cut to max_length."""

    ids: list[list[int]]
    cut: list[bool]

    def refuse_cut(self, max_length: int, *, first: int = 0) -> None:
        """Raise InputError for the earliest text that was cut, if any; `first` is the caller's index of texts[0]."""
        if any(self.cut):
            index = first + self.cut.index(True)
            raise InputError(
                f"text {index}",
                "too long",
                got=f"more than max_length {max_length} tokens",
                remedy="Cut the text, raise max_length, or let it be cut.",
                index=index,
            )


class TextTokenizer:
    """The tokenizer of one checkpoint folder.

    Args:
        folder: the checkpoint's folder.
        vocab_size: rows of the model's embedding table.
        truncation_side: "right" keeps the beginning of a too long text, "left" its end, and of its prompt nothing;
            None takes it from tokenizer.json.

    Raises:
        WeightsError: tokenizer.json is missing or damaged, or has ids of `vocab_size` or more.
        ConfigError: the template changes the text.
    """

    def __init__(
        self, folder: Path, vocab_size: int, *, truncation_side: TruncationSide | None = None
    ) -> None:
        self.vocab_size = vocab_size
        path = self.path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsError(
                str(path),
                "missing, and lastword reads no other tokenizer file",
                remedy="Save it with tokenizers or transformers.",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise WeightsError(
                str(path), f"damaged ({error})", remedy="Fetch the file again."
            ) from error
        own: TruncationSide = (self._tokenizer.truncation or {}).get("direction", "right")
        self.truncation_side = truncation_side or own
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= vocab_size:
            raise WeightsError(
                str(path),
                "token ids go beyond the embedding table",
                got=f"id {highest}",
                expected=f"below {vocab_size}",
                remedy="Use the tokenizer that belongs to these weights.",
            )
        self.before, self.after = self._template()
        self._cuttable = self._has_qwen_words()

    def _template(self) -> tuple[list[int], list[int]]:
        """Find the token ids that the template adds before and after a text."""
        probe = "a"
        core = self._tokenizer.encode(probe, add_special_tokens=False).ids
        whole = self._tokenizer.encode(probe, add_special_tokens=True).ids
        for start in range(len(whole) - len(core) + 1 if core else 0):
            if whole[start : start + len(core)] == core:
                return whole[:start], whole[start + len(core) :]
        raise ConfigError(
            str(self.path),
            "its template rewrites the text",
            expected="one that only adds tokens around it",
        )

    def _has_qwen_words(self) -> bool:
        """Return whether `_SAFE_CUT` is valid: Qwen's word pattern, NFC or no normaliser, no added token across it."""
        if self._tokenizer.pre_tokenizer is None:
            return False
        words = json.loads(self._tokenizer.pre_tokenizer.__getstate__())
        steps = words.get("pretokenizers", [])
        normalizer = self._tokenizer.normalizer
        name = json.loads(normalizer.__getstate__()).get("type") if normalizer else "NFC"
        added = self._tokenizer.get_added_tokens_decoder().values()
        return (
            name == "NFC"
            and len(steps) == 2
            and steps[0].get("pattern") == {"Regex": QWEN_WORDS}
            and steps[0].get("behavior") == "Isolated"
            and not steps[0].get("invert")
            and steps[1].get("type") == "ByteLevel"
            and not steps[1].get("use_regex")
            and not steps[1].get("add_prefix_space")
            and not any(
                t.lstrip or t.rstrip or t.single_word or _SAFE_CUT.search(t.content) for t in added
            )
        )

    @cached_property
    def file_hash(self) -> str:
        """SHA-256 of tokenizer.json in hexadecimal, computed once."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The added tokens of tokenizer.json by their ids."""
        return self._tokenizer.get_added_tokens_decoder()

    @property
    def num_template_tokens(self) -> int:
        """Number of tokens that the template adds to every text."""
        return len(self.before) + len(self.after)

    def encode(
        self, texts: Sequence[str], max_length: int, *, prompt: str = "", first: int = 0
    ) -> Tokens:
        """Tokenise texts in parallel and cut each to `max_length` tokens, keeping the tokens that the template appends.

        Of a very long text only a prefix is tokenised; the ids equal those of tokenising the whole text.

        Args:
            texts: the texts.
            max_length: maximum tokens per text, including those of the template.
            prompt: valid Unicode, put before every text.
            first: the caller's index of texts[0], for errors.

        Raises:
            InputError: a text is not valid Unicode or has no tokens; the error gives its index.
        """
        texts = [prompt + text for text in texts] if prompt else texts
        prefixes = [self._prefix(text, max_length * _CHARS_PER_TOKEN) for text in texts]
        ids = self._encode(prefixes, len(prompt), first)
        for i, text in enumerate(texts):
            chars = len(prefixes[i])
            while len(ids[i]) < max_length and len(prefixes[i]) < len(text):
                chars *= 2
                prefixes[i] = self._prefix(text, chars)
                ids[i] = self._encode([prefixes[i]], len(prompt), first + i)[0]
        cut = [False] * len(texts)
        for i, text in enumerate(texts):
            if not ids[i]:
                raise InputError(
                    f"text {first + i}",
                    "gives no token",
                    got=repr(text),
                    expected="a text with at least one token",
                    index=first + i,
                )
            if len(ids[i]) > max_length or len(prefixes[i]) < len(text):
                ids[i] = self._truncate(ids[i], max_length)
                cut[i] = True
        return Tokens(ids, cut)

    def _truncate(self, ids: list[int], max_length: int) -> list[int]:
        """Cut ids to `max_length`; the tokens of the template stay."""
        if self.truncation_side == "right":
            return ids[: max_length - len(self.after)] + self.after
        kept = max_length - self.num_template_tokens
        return (
            self.before
            + ids[len(ids) - len(self.after) - kept : len(ids) - len(self.after)]
            + self.after
        )

    def _prefix(self, text: str, chars: int) -> str:
        """Return the text up to the last safe cut within `chars` characters, or all of it if there is none."""
        if not self._cuttable or len(text) <= 2 * chars or self.truncation_side == "left":
            return text
        for start in range(chars - 256, 0, -256):
            ends = [match.end() for match in _SAFE_CUT.finditer(text, start, start + 257)]
            if ends:
                return text[: ends[-1]]
        return text

    def _encode(self, texts: Sequence[str], prompt: int, first: int) -> list[list[int]]:
        """Tokenise texts that begin with a prompt of `prompt` characters; `first` as for `encode`."""
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=True)
        except (TypeError, UnicodeError):
            for i, text in enumerate(texts):
                _check_text(text[prompt:], first + i)
            raise
        return [encoding.ids for encoding in encodings]


def _check_text(text: str, index: int) -> None:
    """Raise InputError if the text has a lone surrogate, which no tokenizer accepts."""
    problem = not_unicode(InputError, f"text {index}", text)
    if isinstance(problem, InputError):
        problem.index = index
        raise problem
