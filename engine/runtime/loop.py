"""The window loop: texts are tokenised and packed a window at a time, on a GPU ahead of the forward, then computed.

While a GPU computes one window, a thread prepares the next. A CPU's cores are busy with the forward as it is. A batch's
vectors are taken when those after it have been started, so that a GPU never waits for the host between two. Knows
functions from texts to forests and from forests to vectors, neither tokenizers nor models.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.errors import InputError
from lastword.report import Report

# (texts, the caller's index of the first, counts to add `cut` to) -> forests
Prepare = Callable[[list[str], int, Report], Iterator[Forest]]
# waits for a batch that was started and gives its tensor
Wait = Callable[[], Tensor]
T = TypeVar("T")

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
            yield from read_ahead(_numbered(windows, start), 1)
        finally:
            stopped.set()


def _numbered(windows: Iterator[list[str]], prepare: Prepare) -> Iterator[Window]:
    first = 0
    for texts in windows:
        counts = Report(texts=len(texts))
        yield Window(first, len(texts), prepare(texts, first, counts), counts)
        first += len(texts)


def read_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Read `depth` items further than is yielded; a failure to read waits until the items before it are done."""
    waiting: deque[T] = deque()
    failure: Exception | None = None
    more = True
    while more or waiting:
        while more and len(waiting) <= depth:
            try:
                waiting.append(next(items))
            except StopIteration:
                more = False
            except Exception as error:  # noqa: BLE001  whatever the caller's texts raise
                failure, more = error, False
        if waiting:
            yield waiting.popleft()
    if failure is not None:
        raise failure


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


@dataclass(frozen=True, slots=True)
class _Step:
    """A batch that was started, or with `forest` None the end of its window."""

    window: Window
    began: float  # when the window's first batch was
    forest: Forest | None = None
    wait: Wait | None = None


def compute_windows(
    windows: Generator[Window],
    start: Callable[[Forest], Wait],
    dim: int,
    report: Report,
    advance: Callable[[int], None],
    *,
    too_large: Callable[[int], None],
    depth: int = 0,
) -> Iterator[Tensor]:
    """Yield the vectors [n, dim] of one window after another, in the caller's order.

    Args:     start: begins a batch; what it returns waits for the vectors [N', dim] of the forest's distinct texts.
              depth: batches to start beyond the one waited for, those of the windows after it too.
              report: the counts of each window are added to it when the window is done; advance: told of texts done.
              too_large: told the tokens of a batch that ran out of the device's memory; its halves take its place.
    Raises:   InputError naming a text whose vector is not finite, or that needs more memory than there is; what a batch
              or a window raised, in its turn.
    """
    done = 0.0
    out: Tensor | None = None
    with closing(windows):
        for step in read_ahead(_started(windows, start), depth):
            window = step.window
            if out is None:
                out = torch.empty(window.size, dim)
            if step.forest is not None and step.wait is not None:
                parts = in_memory(step.forest, step.wait, start, window.first, too_large)
                for forest, vectors in parts:
                    _gather(forest, vectors, window, out)
                    advance(len(forest.texts))
                continue
            # windows overlap where several batches are under way: no second is counted twice
            began, done = max(step.began, done), perf_counter()
            window.counts.seconds = done - began
            report.add(window.counts)
            yield out
            out = None


def _started(windows: Iterator[Window], start: Callable[[Forest], Wait]) -> Iterator[_Step]:
    for window in windows:
        began = perf_counter()
        for forest in window.forests:
            yield _Step(window, began, forest, start(forest))
        yield _Step(window, began)


def in_memory(
    forest: Forest,
    wait: Wait,
    start: Callable[[Forest], Wait],
    first: int,
    too_large: Callable[[int], None],
) -> Iterator[tuple[Forest, Tensor]]:
    """Wait for a batch's tensor; one that does not fit in the device's memory makes way for its halves.

    Raises:   InputError naming a text that does not fit alone; `first` is the caller's index of the window's first.
    """
    parts = [(forest, wait)]
    while parts:
        part, wait = parts.pop()
        vectors = _fitting(wait)
        if vectors is not None:
            yield part, vectors
            continue
        if len(part.final_rows) == 1:
            raise _too_long(part, first)
        too_large(part.tokens_computed)
        parts += [(half, start(half)) for half in part.halves()][::-1]


def _fitting(wait: Wait) -> Tensor | None:
    try:
        return wait()
    except torch.OutOfMemoryError:
        return None


def _too_long(forest: Forest, first: int) -> InputError:
    index = first + int(forest.texts.min())
    return InputError(
        f"text {index}: does not fit in the device's memory; got {forest.tokens_computed} tokens, expected fewer. "
        "Lower max_length, compute in bfloat16, or free memory on the device.",
        index,
    )


def _gather(forest: Forest, vectors: Tensor, window: Window, out: Tensor) -> None:
    """Put each vector in its text's row."""
    vectors = vectors[forest.distinct]
    _check_finite(vectors, forest, window.first)
    out[forest.texts] = vectors
    count(forest, window.counts)


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
