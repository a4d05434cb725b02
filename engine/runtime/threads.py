"""Work that runs ahead of whoever takes its results: in order, bounded, no thread and no exception left behind.

A thread never waits for room: it is given as many pieces of work as may lie ready, and one more for each that is taken.
So nothing hangs where the results are no longer wanted, at the interpreter's end either. Knows nothing of texts.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


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


def map_ahead(
    work: Callable[[T], R], items: Iterator[T], *, at_once: Callable[[T], bool]
) -> Generator[R]:
    """Yield `work(item)` in order; while the caller uses one, a thread works on the next.

    The caller's thread alone reads `items`, one further than is yielded.

    Args:
        work: runs in the thread.
        items: what to work on.
        at_once: whether an item is so small that the hand-over would cost more than it hides.
    """
    with _thread("lastword-prepare", drop=True) as thread:

        def begin(item: T) -> Callable[[], R]:
            return partial(work, item) if at_once(item) else thread.submit(work, item).result

        for result in read_ahead(map(begin, items), 1):
            yield result()


def run_ahead(results: Generator[T], depth: int) -> Generator[T]:
    """Yield what `results` yields; a thread computes it, up to `depth` results before they are taken.

    Args:
        results: run in the thread alone, and closed at the end.
        depth: results that may lie ready.
    """
    end = object()
    with _thread("lastword-compute", drop=False) as thread:
        waiting: deque[Future[T | object]] = deque()

        def ask() -> None:
            waiting.append(thread.submit(next, results, end))

        for _ in range(depth):
            ask()
        try:
            while (result := waiting.popleft().result()) is not end:
                ask()
                yield result  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
            with suppress(RuntimeError):  # at Python's end no thread takes work any more
                thread.submit(results.close)


@contextmanager
def _thread(name: str, *, drop: bool) -> Iterator[ThreadPoolExecutor]:
    """Give a thread; at the end what it has begun is waited for, and what it has not is dropped where `drop` is set.

    Ctrl-C does not wait: it comes while the thread waits for a device, which may take long. The thread ends by itself.
    """
    thread, wait = ThreadPoolExecutor(1, name), True
    try:
        yield thread
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        thread.shutdown(wait=wait, cancel_futures=drop)
