"""Tokenise a long text part by part, from its beginning or its end, until there are enough tokens.

A walk is a generator over one text: it yields the next part of the text and is sent that part's token ids. So the parts
of many texts can be tokenised in one call. The parts have the same tokens as the whole text; `split_points.py` explains
why. How many tokens are needed is decided in `tokenizer.py`, which cuts texts to `max_length`.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from lastword.text.split_points import SplitPoints

# Usual number of characters in a part: tokenised in a tenth of a second, in less than 30 MB.
PART_CHARS = 65_536
# Largest number of characters in a part that cannot be split: tokenised in two seconds, in less than 250 MB.
LONGEST_PART = 500_000
# English has 4 to 5 characters per token; 8 leaves a margin.
_CHARS_PER_TOKEN = 8
_LEAST_CHARS = 1024
# Number of characters at the end of a part that ends inside a word. The tokens of these characters may differ from
# those of the whole word.
_UNSETTLED = 1024

# Yields parts, is sent their token ids, and returns the ids that are kept and whether the text has more.
Walk = Generator[str, list[int], tuple[list[int], bool]]


class TooLongError(Exception):
    """A part of a text has more characters than the limit, `args[0]`, and no known place to split it."""


@dataclass(frozen=True, slots=True)
class PromptedText:
    """A prompt and the text after it, read as one string without copying the text."""

    prompt: str
    text: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.text)

    def part(self, start: int, stop: int) -> str:
        """Return the characters from `start` to `stop`; positions outside the string count as its ends."""
        first = len(self.prompt)
        start, stop = max(start, 0), max(stop, 0)
        if start >= first:
            return self.text[start - first : stop - first]
        return self.prompt[start:stop] + self.text[: max(stop - first, 0)]


class Parts:
    """Makes the walks over texts for one tokenizer.

    Args:
        points: where texts can be split; None if that is not known.
        longest: maximum characters of a part that cannot be split.
        token_ends: tokenises a text and returns where each token ends, in characters.
        splits_back: returns whether two tokens, joined and tokenised again as one word, give the same two tokens.
    """

    def __init__(
        self,
        points: SplitPoints | None,
        longest: int,
        token_ends: Callable[[str], list[int]],
        splits_back: Callable[[int, int], bool],
    ) -> None:
        self._points, self._longest = points, longest
        self._token_ends, self._splits_back = token_ends, splits_back

    def fits_one_part(self, chars: int, needed: int) -> bool:
        """Return whether a text is short enough to be tokenised in one part.

        Args:
            chars: its number of characters.
            needed: number of its tokens that will be kept.
        """
        return chars <= min(2 * _part_chars(needed), self._longest)

    def walk(self, text: PromptedText, needed: int, *, from_end: bool) -> Walk:
        """Return a walk for the first `needed` tokens of a text, or for the last with `from_end`.

        Raises:
            TooLongError: a part cannot be split; raised by the walk.
        """
        return self._last_tokens(text, needed) if from_end else self._first_tokens(text, needed)

    def _first_tokens(self, text: PromptedText, needed: int) -> Walk:
        found: list[int] = []
        parts = self._forward(text, 0, len(text), _part_chars(needed), most=needed)
        ids: list[int] | None = None
        while True:
            try:
                part = parts.send(ids)
            except StopIteration:
                return found[:needed], len(found) > needed
            ids = yield part
            found += ids

    def _last_tokens(self, text: PromptedText, needed: int) -> Walk:
        found: list[int] = []
        stop, chars = len(text), _part_chars(needed)
        while stop and len(found) <= needed:
            start = 0 if stop <= 2 * chars else self._last_point(text, 0, stop - chars) or 0
            block: list[int] = []
            parts = self._forward(text, start, stop, PART_CHARS, most=None)
            ids: list[int] | None = None
            while True:
                try:
                    part = parts.send(ids)
                except StopIteration:
                    break
                ids = yield part
                block = (block + ids)[-needed - 1 :]
            found = block + found
            stop, chars = start, min(2 * chars, PART_CHARS)
        return found[max(len(found) - needed, 0) :], len(found) > needed

    def _forward(
        self, text: PromptedText, start: int, stop: int, chars: int, *, most: int | None
    ) -> Generator[str, list[int] | None]:
        """Yield text[start:stop] in parts until there are more than `most` tokens.

        Args:
            text: the text.
            start: a safe split point, or the beginning of the text.
            stop: a safe split point, or the end of the text.
            chars: approximate number of characters in the first part; later parts have more.
            most: stop once there are more tokens than this; None goes on to the end.
        """
        count = 0
        before: int | None = None  # the token before a split point inside a word
        while start < stop:
            end, following, inner = self._next(text, start, stop, chars)
            ids = yield text.part(start, end)
            assert ids is not None  # callers send the ids of each part
            if before is not None and not (ids and self._splits_back(before, ids[0])):
                raise TooLongError(self._longest)
            before = ids[-1] if inner and ids else None
            if inner and before is None:
                raise TooLongError(self._longest)
            count += len(ids)
            if most is not None and count > most:
                return
            start, chars = following, min(2 * chars, PART_CHARS)

    def _next(self, text: PromptedText, start: int, stop: int, chars: int) -> tuple[int, int, bool]:
        """Return where the part from `start` ends, where the next begins, and whether the two meet inside a word."""
        if stop - start <= (2 * chars if self._points else self._longest):
            return stop, stop, False
        if self._points is None:
            raise TooLongError(self._longest)
        end = start + PART_CHARS
        point = self._last_point(text, start, start + chars)
        point = point or self._first_point(text, start + chars, min(stop, start + self._longest))
        if point is None and stop - start > self._longest:
            if (resumed := self._skip(text, end, stop)) is not None:
                return end, resumed, False
            if (inner := self._inner_point(text, start)) is not None:
                return inner, inner, True
            raise TooLongError(self._longest)
        return point or stop, point or stop, False

    def _last_point(self, text: PromptedText, low: int, high: int) -> int | None:
        """Return the last safe split point after `low`, up to `high`."""
        size = 64
        while self._points and high > low:
            begin = max(low, high - size)
            places = self._places(text, begin, high)
            if places:
                return places[-1]
            high, size = begin, min(2 * size, PART_CHARS)
        return None

    def _first_point(self, text: PromptedText, low: int, high: int) -> int | None:
        """Return the first safe split point after `low`, up to `high`."""
        size = 64
        while self._points and low < high:
            end = min(high, low + size)
            places = self._places(text, low, end)
            if places:
                return places[0]
            low, size = end, min(2 * size, PART_CHARS)
        return None

    def _places(self, text: PromptedText, low: int, high: int) -> list[int]:
        """Return the safe split points after `low`, up to `high`."""
        assert self._points is not None
        first = max(low - self._points.context, 0)
        window = text.part(first, high + self._points.context)
        places = (first + match.start() for match in self._points.anywhere.finditer(window))
        return [place for place in places if low < place <= high]

    def _skip(self, text: PromptedText, end: int, stop: int) -> int | None:
        """Return where the word around `end` ends, if it is one unknown token even when cut at `end`; else None."""
        assert self._points is not None
        unknown = self._points.unknown
        if unknown is None:
            return None
        run = PART_CHARS // 2  # longer than any word that the tokenizer knows
        if not unknown.fullmatch(text.part(end - run, end)):
            return None
        while end < stop:
            match = unknown.match(text.part(end - run, end + run))
            assert match is not None  # at least the run that `fullmatch` found
            matched = match.end() - run
            end += matched
            if matched < run:
                break
        end = min(end, stop)
        return end if end == stop or self._places(text, end - 1, end) else None

    def _inner_point(self, text: PromptedText, start: int) -> int | None:
        """Return a place inside a word where a token ends, near the end of the part from `start`; None if not found."""
        assert self._points is not None
        if self._points.inner is None:
            return None
        window = text.part(start, start + PART_CHARS)
        first, last = PART_CHARS // 2, PART_CHARS - _UNSETTLED
        places = [match.start() for match in self._points.inner.finditer(window, first)]
        ends = frozenset(self._token_ends(window))
        for place in reversed(places):
            if first < place <= last and place in ends:
                return start + place if self._is_one_run(window[:place]) else None
        return None

    def _is_one_run(self, before: str) -> bool:
        """Return whether any `_points.blanks` that end `before` are one word: no other white space precedes them."""
        assert self._points is not None
        rest = before.rstrip(self._points.blanks)
        return (
            len(rest) == len(before) or not rest or not (rest[-1].isspace() or rest[-1] == "\u180e")
        )


def _part_chars(needed: int) -> int:
    return min(max(needed * _CHARS_PER_TOKEN, _LEAST_CHARS), PART_CHARS)
