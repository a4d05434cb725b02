"""The window loop: texts are tokenised and packed a window at a time, on a GPU ahead of the forward, then computed.

While a GPU computes one window, a thread prepares the next. A CPU's cores are busy with the forward as it is. A batch's
vectors are taken when the next batch has been started, so that a GPU never waits for the host between two. Knows
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
from lastword.transfer import to_host

# (texts, the caller's index of the first, counts to add `cut` to) -> forests
Prepare = Callable[[list[str], int, Report], Iterator[Forest]]

# forest -> the vectors [N', dim] of its distinct texts
Compute = Callable[[Forest], Tensor]
# A batch on the device, and what waits for its vectors
Started = tuple[Forest, Callable[[], Tensor]]

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
    compute: Compute,
    dim: int,
    report: Report,
    advance: Callable[[int], None],
    *,
    too_large: Callable[[int], None],
) -> Iterator[Tensor]:
    """Yield the vectors [n, dim] of one window after another, in the caller's order.

    Args:     compute: starts computing the vectors [N', dim] of a forest's distinct texts, on any device.
              report: the counts of each window are added to it when the window is done; advance: told of texts done.
              too_large: told the tokens of a batch that ran out of the device's memory; its halves take its place.
    Raises:   InputError naming a text whose vector is not finite, or that needs more memory than there is.
    """
    batches = 0
    with closing(windows):
        for window in windows:
            began = perf_counter()
            out = torch.empty(window.size, dim)
            for forest, result in _one_behind(_started(window, compute, too_large)):
                vectors = result()[forest.distinct]
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


def _one_behind(started: Iterator[Started]) -> Iterator[Started]:
    """Give each batch when the one after it has been started."""
    waiting = next(started, None)
    while waiting is not None:
        following = next(started, None)
        yield waiting
        waiting = following


def _started(
    window: Window, compute: Compute, too_large: Callable[[int], None]
) -> Iterator[Started]:
    """Start batch after batch; one that does not fit in the device's memory makes way for its halves."""
    for forest in window.forests:
        parts = [forest]
        while parts:
            part = parts.pop()
            result = _start(part, compute)
            if result is not None:
                yield part, result
                continue
            if len(part.final_rows) == 1:
                raise _too_long(part, window.first)
            too_large(part.tokens_computed)
            torch.cuda.empty_cache()
            parts += reversed(part.halves())


def _start(forest: Forest, compute: Compute) -> Callable[[], Tensor] | None:
    """Start one batch, or give None where memory ran out: what the forward held is free on return."""
    try:
        return to_host(compute(forest))
    except torch.OutOfMemoryError:
        return None


def _too_long(forest: Forest, first: int) -> InputError:
    index = first + int(forest.texts.min())
    return InputError(
        f"text {index}: does not fit in the device's memory; got {forest.tokens_computed} tokens, expected fewer. "
        "Lower max_length, compute in bfloat16, or free memory on the device.",
        index,
    )


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
