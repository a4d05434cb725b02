"""Cuts a stream of texts into windows that are tokenised, sorted and packed together. Knows texts only."""

from collections.abc import Iterator

from lastword.errors import InputError

# Large enough to meet equal prefixes, small in memory.
_WINDOW_TEXTS = 4096
_WINDOW_CHARS = 4_000_000
# A first window that is ready soon but fills a GPU's batch of 16,384 tokens of English, and how windows grow from it.
_FIRST_CHARS = 65_536
_GROWTH = 4


def cut_windows(texts: Iterator[object], *, small_first: bool = False) -> Iterator[list[str]]:
    """Gather texts until a window is full by count or by characters.

    Args:     small_first: begin with a small window and let them grow, so that a device which computes while the next
              one is prepared has little to wait for.
    Raises:   InputError for a text that is not a str, after the windows before its own.
    """
    full = _FIRST_CHARS if small_first else _WINDOW_CHARS
    window: list[str] = []
    chars = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            got = type(text).__name__
            raise InputError(f"text {index}: not a string; got {got}, expected str.", index)
        window.append(text)
        chars += len(text)
        if len(window) == _WINDOW_TEXTS or chars >= full:
            yield window
            window, chars = [], 0
            full = min(full * _GROWTH, _WINDOW_CHARS)
    if window:
        yield window
