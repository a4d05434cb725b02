"""Cuts a stream of texts into windows that are tokenised, sorted and packed together. Knows texts only."""

from collections.abc import Iterator

from lastword.errors import InputError

# Large enough to meet equal prefixes, small in memory.
_WINDOW_TEXTS = 4096
_WINDOW_CHARS = 4_000_000


def cut_windows(texts: Iterator[object]) -> Iterator[list[str]]:
    """Gather texts until a window is full by count or by characters."""
    window: list[str] = []
    chars = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            got = type(text).__name__
            raise InputError(f"text {index}: not a string; got {got}, expected str.", index)
        window.append(text)
        chars += len(text)
        if len(window) == _WINDOW_TEXTS or chars >= _WINDOW_CHARS:
            yield window
            window, chars = [], 0
    if window:
        yield window
