"""Turn texts into token ids with the checkpoint's tokenizer.json alone.

The tokenizer's template (its post-processor) adds tokens around every text, such as the end token. All threads share
the tokenizer and nothing modifies it after loading, so texts are truncated here and not by the tokenizer. This module
knows nothing about prompt names, weights or batches.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer

from lastword.errors import ConfigError, InputError, WeightsError, count, not_unicode
from lastword.text.calls import Calls
from lastword.text.expansion import most_characters
from lastword.text.parts import LONGEST_PART, Parts, PromptedText, TooLongError, Walk
from lastword.text.split_points import find_split_points, has_qwen_pipeline
from lastword.weights.files.tokenizer_file import read_tokenizer, translate_faults

# The end at which a text that is too long is cut.
TruncationSide = Literal["right", "left"]

_OTHER = "Use the tokenizer that belongs to these weights."
# Texts that show what the template adds; each is one token in most tokenizers.
_PROBES = ("a", "b", "1", "!")


_EXAMPLE_PART = 20_000  # characters of a text in which the first unknown word is looked for


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token ids of a list of texts, and for each text whether it was cut to max_length."""

    ids: list[list[int]]
    cut: list[bool]


@dataclass(slots=True)
class GoodTokens:
    """Token ids of the texts that can be embedded, by the caller's index, ascending; errors of the other texts."""

    ids: dict[int, list[int]] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)  # indices of the texts cut to max_length
    unknown: int = 0  # texts with words that the tokenizer does not know
    unknown_word: str = ""  # the first such word
    errors: list[InputError] = field(default_factory=list)


class TextTokenizer:
    """The tokenizer of one checkpoint folder.

    Args:
        folder: the checkpoint's folder.
        vocab_size: rows of the model's embedding table.
        truncation_side: which end of prompt and text is cut off if they are too long; None uses the setting in
            tokenizer.json.
        frame: two texts whose tokens replace the template's: one goes before every text, one after it. None keeps the
            template.

    Raises:
        WeightsError: tokenizer.json is missing or damaged, or can give ids of `vocab_size` or more.
        ConfigError: the template does more than add tokens around a text, or a tokenizer setting is not accepted.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        *,
        truncation_side: TruncationSide | None = None,
        frame: tuple[str, str] | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.path = folder / "tokenizer.json"
        tokenizer, data = read_tokenizer(self.path)
        self.file_hash = hashlib.sha256(data).hexdigest()  # of the bytes that were loaded
        with translate_faults(self._load_error):
            own: TruncationSide = (tokenizer.truncation or {}).get("direction", "right")
            self.truncation_side = truncation_side or own
            tokenizer.no_truncation()
            tokenizer.no_padding()
            self.added_tokens: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
            vocabulary = tokenizer.get_vocab(with_added_tokens=True)
            ids = [*vocabulary.values(), *self.added_tokens]
            if type(tokenizer.model).__name__ == "Unigram":  # its ids are indices of a list
                ids.append(tokenizer.get_vocab_size(with_added_tokens=False) - 1)
            self._check_ids(ids)
            if getattr(tokenizer.model, "dropout", None):
                raise ConfigError(
                    str(self.path),
                    "the tokenizer is random",
                    got=f"dropout {tokenizer.model.dropout}",
                    expected="none",
                    remedy="Set dropout to null in it.",
                )
            longest = LONGEST_PART // most_characters(tokenizer.normalizer, str(self.path))
            points = find_split_points(tokenizer, vocabulary)
            self.has_qwen_pipeline = has_qwen_pipeline(tokenizer)
            self._unknown = _unknown_id(tokenizer)  # Qwen's tokenizers have none
            # A word with more characters than this is unknown, whatever it is.
            self.longest_word: int | None = getattr(
                tokenizer.model, "max_input_chars_per_word", None
            )
        self._calls = Calls(tokenizer, known=points is not None)
        self.before, self.after = self._template(tokenizer)
        self._check_ids([*self.before, *self.after])
        self._prompt: tuple[str, tuple[int, ...]] = "", ()  # the last prompt, and its token ids
        self._parts = Parts(points, longest, self._calls.token_ends, self._calls.splits_back)
        if frame is not None:
            (self.before, _), (self.after, _) = self._keep_needed(
                frame, sys.maxsize, "", 0, lambda: False
            )

    def _load_error(self, reason: str) -> WeightsError:
        return WeightsError(
            str(self.path),
            "cannot tokenise a text",
            got=reason,
            remedy="Fetch the file again.",
        )

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Raise WeightsError for an id that the embedding table has no row for."""
        highest = max(ids, default=-1)
        if highest >= self.vocab_size:
            raise WeightsError(
                str(self.path),
                "token ids go beyond the embedding table",
                got=f"id {highest}",
                expected=f"below {self.vocab_size}",
                remedy=_OTHER,
            )

    def _template(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Return the token ids that the template adds before and after every text, and remove the template."""
        with translate_faults(self._load_error):
            full = self._calls.encode(_PROBES)
            tokenizer.post_processor = None
            bare = self._calls.encode(_PROBES)
        if bare is None or full is None:
            raise self._load_error("it takes too long")
        found = [
            _frames(core.ids, whole.ids) for core, whole in zip(bare, full, strict=True) if core.ids
        ]
        common = set(found[0]).intersection(*found[1:]) if found else set()
        if not common:
            raise ConfigError(
                str(self.path),
                "its template rewrites the text",
                expected="one that only adds tokens around it",
            )
        before, after = min(common)
        return list(before), list(after)

    @property
    def num_template_tokens(self) -> int:
        """Number of tokens that the template, or the frame, adds to every text."""
        return len(self.before) + len(self.after)

    def has_unknown(self, ids: Sequence[int]) -> bool:
        """Return whether a text's ids contain the unknown token; the template's tokens at both ends do not count."""
        if self._unknown is None:
            return False
        return self._unknown in ids[len(self.before) : len(ids) - len(self.after)]

    def is_unknown(self, text: str, ids: Sequence[int], *, prompt: str = "") -> bool:
        """Return whether the tokenizer does not know a word or character of a text, or drops the whole text.

        The result is False for every text if the tokenizer has no unknown token.

        Args:
            text: the text, without its prompt. An empty text and one of white space count as known.
            ids: the token ids of prompt and text, with the template's. An unknown token in the prompt counts, too.
            prompt: the prompt.
        """
        if self._unknown is None or self.has_unknown(ids):
            return self._unknown is not None
        # A prompt has at most as many tokens as characters. If `ids` has more tokens than that, the text has some.
        short = len(ids) - self.num_template_tokens <= len(prompt)
        return short and bool(text.strip()) and self.count(text) == 0

    def _unknown_word(self, text: str) -> str:
        """Return a text's first unknown word; the stripped text if all of it is dropped; "" if every word is known."""
        text = text[:_EXAMPLE_PART]
        spans = self._calls.spans(text)
        found = (text[start:stop] for token, start, stop in spans if token == self._unknown)
        return next(found, text.strip() if not spans else "")

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None if there is no such token."""
        return self._calls.token_id(token)

    def count(self, text: str) -> int:
        """Return the number of tokens in a text, without those of the template.

        Raises:
            InputError: as for `encode`, except that a text may have no tokens.
        """
        return len(self._keep_needed([text], sys.maxsize, "", 0, lambda: False)[0][0])

    def spans(self, text: str) -> list[tuple[int, bool, int, int]]:
        """Return (id, is_special, start, stop) of each token, without the template's; a token covers text[start:stop].

        Raises:
            InputError: the tokenizer fails on the text.
        """
        _check_unicode(text, 0)
        with translate_faults(
            lambda reason: InputError("text", "the tokenizer fails on it", got=reason)
        ):
            found = self._calls.spans(text)
        special = {i for i, token in self.added_tokens.items() if token.special}
        return [(i, i in special, start, stop) for i, start, stop in found]

    def token(self, token_id: int) -> str:
        """Return the token with an id, as written in the vocabulary; "" if there is none."""
        return self._calls.token(token_id)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        return self._calls.decode(ids, skip_special_tokens=skip_special_tokens)

    def prompt_ids(self, prompt: str, most: int) -> tuple[int, ...]:
        """Return the token ids that texts with this prompt begin with: the template's, then the prompt's.

        If a token spans the border between the prompt and a text, the text begins with fewer of these ids.

        Args:
            prompt: the prompt.
            most: maximum tokens of the prompt, without those of the template.

        Returns:
            The ids; () if the prompt is empty or has more than `most` tokens, or if `most` is 0.
        """
        known, ids = self._prompt
        if not prompt or not most:
            return ()
        if prompt != known:
            (core, more), *_ = self._keep_needed([prompt], most, "", 0, lambda: False)
            ids = () if more else (*self.before, *core)
            self._prompt = prompt, ids
        return ids

    def encode(
        self,
        texts: Sequence[str],
        max_length: int,
        *,
        prompt: str = "",
        first: int = 0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Tokens:
        """Tokenise texts in parallel and cut each to `max_length` tokens, keeping the tokens that the template adds.

        A long text is tokenised part by part, and only as far as its tokens are needed. The ids are the same as from
        tokenising the whole text.

        Args:
            texts: the texts.
            max_length: maximum tokens per text, including those of the template.
            prompt: put before every text, and counted as part of it; must be valid Unicode.
            first: the caller's index of texts[0], for errors.
            stopped: called now and then; returns whether to stop.

        Raises:
            CancelledError: `stopped` returned True.
            InputError: a text is not valid Unicode, has no tokens, or has a part that is too long and cannot be split,
                or the tokenizer fails on it; `index` of the error is the caller's index of the text.
        """
        try:
            needed = max_length - self.num_template_tokens
            kept = self._keep_needed(texts, needed, prompt, first, stopped)
        except InputError as error:
            if error.index is not None:
                _check_unicode(texts[error.index - first], error.index)
            raise
        ids = [self.before + core + self.after for core, _ in kept]
        if [] in ids:
            index = ids.index([])
            raise InputError(
                f"text {first + index}",
                "gives no token",
                got=repr(texts[index][:60]),
                expected="a text with at least one token",
                index=first + index,
            )
        return Tokens(ids, [cut for _, cut in kept])

    def encode_good(
        self,
        texts: Sequence[str],
        max_length: int,
        *,
        prompt: str = "",
        first: int = 0,
        stopped: Callable[[], bool] = lambda: False,
        refuse_long: bool = False,
        keep_going: bool = False,
    ) -> GoodTokens:
        """Tokenise texts as `encode` does; with `keep_going`, leave out the texts that cannot be embedded.

        Args:
            texts: as for `encode`.
            max_length: as for `encode`.
            prompt: as for `encode`.
            first: as for `encode`.
            stopped: as for `encode`.
            refuse_long: treat a text of more than `max_length` tokens as an error.
            keep_going: return errors instead of raising the first one.

        Raises:
            CancelledError: `stopped` returned True.
            InputError: a text cannot be embedded, and `keep_going` is not set.
        """
        good, waiting = GoodTokens(), [(first, texts)]
        while waiting:
            start, part = waiting.pop()
            try:
                tokens = self.encode(part, max_length, prompt=prompt, first=start, stopped=stopped)
            except InputError as error:
                if not keep_going:
                    raise
                if len(part) == 1:
                    good.errors.append(error)
                else:  # halve the list until each bad text is alone
                    half = len(part) // 2
                    waiting += [(start + half, part[half:]), (start, part[:half])]
                continue
            for index, (ids, cut) in enumerate(zip(tokens.ids, tokens.cut, strict=True), start):
                if cut and refuse_long:
                    good.errors.append(_too_long(index, max_length))
                    if not keep_going:
                        raise good.errors[0]
                else:
                    good.ids[index] = ids
                    if cut:
                        good.cut.add(index)
                    text = part[index - start]
                    if self.is_unknown(text, ids, prompt=prompt):
                        good.unknown += 1
                        if (
                            good.unknown == 1
                        ):  # look it up once per call; it may be in the prompt, and so in every text
                            word = self._unknown_word(text) or self._unknown_word(prompt)
                            good.unknown_word = word
        return good

    def _keep_needed(
        self,
        texts: Sequence[str],
        needed: int,
        prompt: str,
        first: int,
        stopped: Callable[[], bool],
    ) -> list[tuple[list[int], bool]]:
        """Return, for each text, the first `needed` token ids of prompt and text, and whether there are more.

        If texts are cut on the left, these are the last ids. The template's ids are neither counted nor returned.
        """
        from_end = self.truncation_side == "left"
        kept: list[tuple[list[int], bool]] = [([], False)] * len(texts)
        walks: dict[int, Walk] = {}
        parts: dict[int, str] = {}  # the next part of each text that needs one
        for i, text in enumerate(texts):
            if self._parts.fits_one_part(len(prompt) + len(text), needed):
                parts[i] = prompt + text
            else:
                walks[i] = self._parts.walk(PromptedText(prompt, text), needed, from_end=from_end)
                parts[i] = _advance(walks[i], None, first + i)[0]
        while parts:
            found = self._calls.ids(list(parts.values()), [first + i for i in parts], stopped)
            following: dict[int, str] = {}
            for i, ids in zip(parts, found, strict=True):
                if i in walks:
                    part, end = _advance(walks[i], ids, first + i)
                    if end is None:
                        following[i] = part
                    else:
                        kept[i] = end
                elif len(ids) > needed:
                    kept[i] = (ids[len(ids) - needed :] if from_end else ids[:needed]), True
                else:
                    kept[i] = ids, False
            parts = following
        return kept


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the unknown token, which replaces what the tokenizer does not know; None if there is none."""
    model = tokenizer.model
    if type(model).__name__ == "Unigram":
        found = json.loads(model.__getstate__()).get("unk_id")
        return None if found is None else int(found)
    token = getattr(model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)


def _frames(
    core: Sequence[int], whole: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return every pair (before, after) for which before + core + after equals `whole`."""
    starts = range(len(whole) - len(core) + 1)
    return [
        (tuple(whole[:start]), tuple(whole[start + len(core) :]))
        for start in starts
        if whole[start : start + len(core)] == core
    ]


def _advance(
    walk: Walk, ids: list[int] | None, index: int
) -> tuple[str, tuple[list[int], bool] | None]:
    """Send a walk the ids of the part that it yielded last; None starts the walk.

    Returns:
        The next part and None; if the walk has ended, "" and the result of the walk.
    """
    try:
        return (next(walk) if ids is None else walk.send(ids)), None
    except StopIteration as end:
        return "", end.value
    except TooLongError as error:
        raise InputError(
            f"text {index}",
            "too long to tokenise, and no place to split it is known",
            got=f"a part of more than {error.args[0]:,} characters",
            remedy="Put spaces or line breaks into it, or shorten it.",
            index=index,
        ) from None


def _too_long(index: int, max_length: int) -> InputError:
    return InputError(
        f"text {index}",
        "too long",
        got=f"more than {count(max_length, 'token')}",
        remedy="Shorten the text, raise max_length, or pass too_long='cut'.",
        index=index,
    )


def _check_unicode(text: str, index: int) -> None:
    """Raise InputError if the text has a lone surrogate, which no tokenizer accepts."""
    problem = not_unicode(InputError, f"text {index}", text)
    if isinstance(problem, InputError):
        problem.index = index
        raise problem
