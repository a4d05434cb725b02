"""Work that runs ahead of whoever takes its results: in order, bounded, no exception lost and no thread left behind.

The caller's thread alone reads what is worked on. Where the results are no longer wanted, a thread ends with the piece
of work it is at, and nobody waits for it: it may be waiting for a device. At Python's end it is waited for a moment, as
a thread that the interpreter's end finds within PyTorch would abort the process. Knows nothing of texts.
"""

import atexit
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")
# The next piece of work; None where there is none yet and `wait` is not set. StopIteration where there will be none.
Take = Callable[[bool], T | None]

_SECONDS_AT_END = 5.0
_running: "weakref.WeakSet[_Computing[Any, Any]]" = weakref.WeakSet()


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

    Args:
        work: runs in the thread.
        items: read one further than is yielded.
        at_once: whether an item is so small that the hand-over would cost more than it hides.
    """
    with _preparing() as thread:

        def begin(item: T) -> Callable[[], R]:
            return partial(work, item) if at_once(item) else thread.submit(work, item).result

        for result in read_ahead(map(begin, items), 1):
            yield result()


def run_ahead(
    items: Iterator[T],
    prepare: Callable[[T], P],
    compute: Callable[[Take[P], Callable[[], bool]], Iterator[R]],
    most: int,
) -> Generator[R]:
    """Yield a result per item, in order; two threads prepare and compute the next ones while the caller uses one.

    Two items are read for each that is yielded, up to `most`; more only while the next result is not there yet, so that
    a slow source does not hold back for long what is ready.

    Args:
        items: read by the caller's thread alone.
        prepare: runs in a thread, item by item.
        compute: runs in another; it is given what takes the next prepared item, and whether to stop.
        most: items that are read and whose results are not taken.
    """
    with _preparing() as thread:
        computing: _Computing[P, R] = _Computing(compute)
        pending, more = 0, True
        failure: Exception | None = None
        try:
            while more or pending:
                read = 0
                while more and pending < most and (read < 2 or not computing.ready()):
                    read += 1
                    try:
                        prepared = thread.submit(prepare, next(items))
                    except StopIteration:
                        more = False
                    except Exception as error:  # noqa: BLE001  whatever the caller's texts raise
                        failure, more = error, False
                    else:
                        pending += 1
                    computing.feed(prepared if more else None)
                if pending:
                    result = computing.result()
                    pending -= 1
                    yield result
        finally:
            computing.stop()
    if failure is not None:
        raise failure


class _Computing(Generic[P, R]):
    """The thread of one `run_ahead`, fed with what is prepared."""

    def __init__(self, compute: Callable[[Take[P], Callable[[], bool]], Iterator[R]]) -> None:
        self._compute = compute
        self._fed: SimpleQueue[Future[P] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[R, None] | tuple[None, BaseException]] = SimpleQueue()
        self._stopped = Event()
        self.thread = Thread(target=self._run, name="lastword-compute", daemon=True)
        _running.add(self)  # as long as its thread runs
        self.thread.start()

    def feed(self, prepared: "Future[P] | None") -> None:
        """Hand over the next item, or None after the last."""
        self._fed.put(prepared)

    def ready(self) -> bool:
        """Whether the next result is there."""
        return not self._results.empty()

    def result(self) -> R:
        """Wait for the next result."""
        found = self._results.get()
        if found[1] is not None:
            raise found[1]
        return found[0]

    def stop(self) -> None:
        """Let the thread end with the batch it is at."""
        self._stopped.set()
        self._fed.put(None)

    def _run(self) -> None:
        try:
            for result in self._compute(self._take, self._stopped.is_set):
                self._results.put((result, None))
        except BaseException as error:  # noqa: BLE001  raised again where the result is taken
            self._results.put((None, error))

    def _take(self, wait: bool) -> P | None:  # noqa: FBT001  a Take
        try:
            prepared = self._fed.get(block=wait)
        except Empty:
            return None
        if prepared is None or self._stopped.is_set():
            raise StopIteration
        return prepared.result()


@contextmanager
def _preparing(
    is_finalizing: Callable[[], bool] = sys.is_finalizing,  # a name of this module may be gone then
) -> Iterator[ThreadPoolExecutor]:
    """Give a thread; at the end what it has begun goes on, and what it has not is dropped."""
    thread = ThreadPoolExecutor(1, "lastword-prepare")
    try:
        yield thread
    finally:
        if not is_finalizing():  # what it takes is gone by then, and so is the thread
            thread.shutdown(wait=False, cancel_futures=True)


@atexit.register
def _end_all() -> None:
    """Let every thread end, at Python's end, before PyTorch goes."""
    deadline = time.monotonic() + _SECONDS_AT_END
    running = list(_running)
    for each in running:
        each.stop()
    for each in running:
        each.thread.join(max(0.0, deadline - time.monotonic()))
