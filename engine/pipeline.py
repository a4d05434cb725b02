"""The window loop: texts are tokenised and packed a window at a time, on a GPU ahead of the forward, then computed.

While a GPU computes one window, a thread prepares the next. A CPU's cores are busy with the forward as it is. Knows
functions from texts to forests and from forests to vectors, neither tokenizers nor models.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event
from time import perf_counter

import torch
from torch import Tensor

from lastword import memory
from lastword.errors import InputError
from lastword.forest import Forest
from lastword.report import Report

# (texts, the caller's index of the first, counts to add `cut` to) -> forests
Prepare = Callable[[list[str], int, Report], Iterator[Forest]]

# A window of fewer texts is prepared in the caller's thread: the hand-over would cost more than it hides.
_MIN_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive texts: the caller's index of the first, how many, their forests made on demand, and the counts."""

    first: int
    size: int
    forests: Iterator[Forest]
    counts: Report


def prepare_windows(
    windows: Iterator[list[str]], prepare: Prepare, *, ahead: bool
) -> Generator[Window]:
    """Yield each window with its forests; with `ahead` a thread prepares the next one meanwhile.

    The caller's thread alone reads `windows`, one window further with `ahead`. What fails, in reading or preparing, is
    raised here or by the window's forests, after all windows before it.
    """
    if not ahead:
        yield from _numbered(windows, prepare)
        return
    stopped = Event()
    with ThreadPoolExecutor(1, "lastword-prepare") as thread:

        def start(texts: list[str], first: int, counts: Report) -> Iterator[Forest]:
            if len(texts) < _MIN_AHEAD:
                return prepare(texts, first, counts)
            made: SimpleQueue[Forest | BaseException | None] = SimpleQueue()
            thread.submit(_fill, made, prepare(texts, first, counts), stopped)
            return _take(made)

        try:
            yield from _one_ahead(_numbered(windows, start))
        finally:
            stopped.set()


def _numbered(windows: Iterator[list[str]], prepare: Prepare) -> Iterator[Window]:
    first = 0
    for texts in windows:
        counts = Report(texts=len(texts))
        yield Window(first, len(texts), prepare(texts, first, counts), counts)
        first += len(texts)


def _one_ahead(windows: Iterator[Window]) -> Iterator[Window]:
    """Read one window further than is yielded; its failure waits until the windows before it are done."""
    window = next(windows, None)
    while window is not None:
        failure: Exception | None = None
        following: Window | None = None
        try:
            following = next(windows, None)
        except Exception as error:  # noqa: BLE001  whatever the caller's texts raise
            failure = error
        yield window
        if failure is not None:
            raise failure
        window = following


def _fill(
    made: "SimpleQueue[Forest | BaseException | None]", forests: Iterator[Forest], stopped: Event
) -> None:
    """Make forests until there are no more or nobody wants them; runs in the thread."""
    try:
        while not stopped.is_set() and (forest := next(forests, None)) is not None:
            made.put(forest)
        made.put(None)
    except BaseException as error:  # noqa: BLE001  raised again where the forests are taken
        made.put(error)


def _take(made: "SimpleQueue[Forest | BaseException | None]") -> Iterator[Forest]:
    while (forest := made.get()) is not None:
        if isinstance(forest, BaseException):
            raise forest
        yield forest


def compute_windows(
    windows: Generator[Window],
    compute: Callable[[Forest], Tensor],
    dim: int,
    report: Report,
    advance: Callable[[int], None],
) -> Iterator[Tensor]:
    """Yield the vectors [n, dim] of one window after another, in the caller's order.

    Args:     compute: gives the vectors [N', dim] of a forest's distinct texts on the CPU.
              report: the counts of each window are added to it when the window is done; advance: told of texts done.
    Raises:   InputError naming a text whose vector is not finite.
    """
    batches = 0
    with closing(windows):
        for window in windows:
            began = perf_counter()
            out = torch.empty(window.size, dim)
            for forest in window.forests:
                vectors = compute(forest)[forest.distinct]
                _check_finite(vectors, forest, window.first)
                out[forest.texts] = vectors
                count(forest, window.counts)
                advance(len(forest.texts))
                batches += 1
                if batches % memory.BATCHES == 0:
                    memory.give_back()
            window.counts.seconds = perf_counter() - began
            report.add(window.counts)
            yield out


def count(forest: Forest, report: Report) -> None:
    """Add what one forest computes."""
    report.tokens_asked += forest.tokens_asked
    report.tokens_computed += forest.tokens_computed
    report.batches += 1


def _check_finite(vectors: Tensor, forest: Forest, first: int) -> None:
    finite = vectors.isfinite().all(1)
    if not bool(finite.all()):
        index = first + int(forest.texts[~finite].min())
        raise InputError(
            f"text {index}: its vector is not finite; expected finite numbers. The weights are damaged or overflow in "
            "this dtype: check them, or use dtype float32.",
            index,
        )
