"""Calls into the tokenizers library: bounded in size, interruptible, and with failures turned into our own errors."""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from threading import Thread
from typing import Any, TypeVar

from tokenizers import Tokenizer

from lastword.errors import InputError
from lastword.weights.files.tokenizer_file import translate_faults

# A call gets texts until they have this many characters. Ctrl-C takes effect only between two calls, and a call of this
# size takes half a second on one slow core.
_CALL_CHARS = 262_144
# Seconds to wait for a call into an unknown pipeline, whose patterns may take exponential time.
_SECONDS = 9.0

T = TypeVar("T")


class Calls:
    """Makes the calls into one tokenizer.

    Args:
        tokenizer: the tokenizer; if it has a template, the calls apply it.
        known: whether `split_points.py` knows the tokenizer's pipeline. Tokenising with an unknown pipeline could be
            endless, so `ids` and `encode` do it in a separate thread and wait at most nine seconds for each call into
            the library. The thread itself cannot be ended.
    """

    def __init__(self, tokenizer: Tokenizer, *, known: bool) -> None:
        self._tokenizer, self._known = tokenizer, known

    def ids(
        self, texts: Sequence[str], indices: Sequence[int], stopped: Callable[[], bool]
    ) -> list[list[int]]:
        """Tokenise texts in parallel, and return the token ids of each.

        Args:
            texts: the texts, or parts of them.
            indices: the caller's index of each text, for errors.
            stopped: called before each call into the library; returns whether to stop.

        Raises:
            CancelledError: `stopped` returned True.
            InputError: the tokenizer fails on a text, for example on a lone surrogate, or takes too long.
        """
        found: list[list[int]] = []
        first = chars = 0
        for i, text in enumerate(texts):
            chars += len(text)
            if chars >= _CALL_CHARS or i == len(texts) - 1:
                if stopped():
                    raise CancelledError
                found += self._batch(texts[first : i + 1], indices[first : i + 1])
                first, chars = i + 1, 0
        return found

    def _batch(self, texts: Sequence[str], indices: Sequence[int]) -> list[list[int]]:
        where = f"text {indices[0]}" if len(texts) == 1 else f"texts {indices[0]} to {indices[-1]}"

        def make_error(reason: str) -> InputError:
            return InputError(
                where,
                "the tokenizer fails on it",
                got=reason,
                remedy="Change the text, or check the model's tokenizer.json.",
                index=indices[0],
            )

        try:
            with translate_faults(make_error):
                encodings = self.encode(texts)
        except InputError:
            if len(texts) == 1:
                raise
            each = zip(texts, indices, strict=True)
            return [ids for text, index in each for ids in self._batch([text], [index])]
        if encodings is None:
            raise InputError(
                where,
                f"the tokenizer takes longer than {_SECONDS:g} s",
                remedy="The patterns in the model's tokenizer.json are too slow for such a text.",
                index=indices[0],
            )
        return [encoding.ids for encoding in encodings]

    def encode(self, texts: Sequence[str]) -> list[Any] | None:
        """Tokenise texts; return None if that takes too long. Exceptions of the tokenizer are not converted."""
        return self._run_bounded(lambda: self._tokenizer.encode_batch_fast(texts))

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None if there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """Return (id, start, stop) of each token of a text: the token covers text[start:stop]."""
        (encoding,) = self._tokenizer.encode_batch([text])
        return [(i, *span) for i, span in zip(encoding.ids, encoding.offsets, strict=True)]

    def token(self, token_id: int) -> str:
        """Return the token with an id, as written in the vocabulary; "" if there is none."""
        return self._tokenizer.id_to_token(token_id) or ""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_ends(self, text: str) -> list[int]:
        """Return the end of each token of a text, as an offset in characters."""
        (encoding,) = self._tokenizer.encode_batch([text])
        return [end for _, end in encoding.offsets]

    def splits_back(self, first: int, second: int) -> bool:
        """Return whether the strings of two tokens, joined and tokenised as one word, give the same two tokens."""
        word = "".join(self._tokenizer.id_to_token(each) or "" for each in (first, second))
        return [token.id for token in self._tokenizer.model.tokenize(word)] == [first, second]

    def _run_bounded(self, work: Callable[[], list[Any]]) -> list[Any] | None:
        if self._known:
            return work()
        try:
            return in_thread(work).result(_SECONDS)
        except TimeoutError:
            return None


def in_thread(work: Callable[[], T]) -> "Future[T]":
    """Run `work` in a separate thread, which does not keep Python from exiting; return the future of its result."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised where the caller takes the result
            future.set_exception(error)

    Thread(target=run, name="lastword-tokenize", daemon=True).start()
    return future
