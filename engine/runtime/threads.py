"""Background threads that work ahead of the caller: in order, bounded, no exception lost and no thread left behind.

Only the caller's thread reads the input. When the results are no longer needed, a thread ends after its current piece
of work. The caller does not wait for that, because the thread may be waiting for a device. When Python exits, computing
threads get a few seconds to end, since a thread still inside PyTorch would abort the process. This module knows nothing
about texts.
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
from threading import Event, Thread, local
from typing import Any, Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")
# Called with `wait`: returns the next piece of work, or None if there is none yet and `wait` is False; raises
# StopIteration at the end.
Take = Callable[[bool], T | None]

_SECONDS_AT_END = 5.0
_here = local()  # in a preparation thread: `stopped`, an Event
_running: "weakref.WeakSet[_Computing[Any, Any]]" = weakref.WeakSet()


def read_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield the items, reading up to `depth` ahead. If reading raises, the error follows the items before it."""
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
    """Yield `work(item)` in order; while the caller uses one result, a thread works on the next.

    Args:
        work: runs in the thread.
        items: read one item ahead.
        at_once: returns whether an item is so small that the caller's thread should do its work.
    """
    with _preparation_thread() as thread:

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
    """Yield one result per item, in order; two threads prepare and compute the next ones while the caller uses one.

    Before each result, at most two items are read, or more while the result is not ready. So a slow source does not
    hold back finished results for long.

    Args:
        items: read by the caller's thread only.
        prepare: runs in one thread, item by item.
        compute: runs in another thread. It is called with two functions: the first takes the next prepared item
            (`Take`), the second returns whether to stop.
        most: maximum number of items read before their results are taken.
    """
    with _preparation_thread() as thread:
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
    """The computing thread of one call of `run_ahead`; the caller feeds prepared items to it."""

    def __init__(self, compute: Callable[[Take[P], Callable[[], bool]], Iterator[R]]) -> None:
        self._compute = compute
        self._fed: SimpleQueue[Future[P] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[R, None] | tuple[None, BaseException]] = SimpleQueue()
        self._stopped = Event()
        self.thread = Thread(target=self._run, name="lastword-compute", daemon=True)
        _running.add(self)  # a weak reference: the running thread keeps it alive
        self.thread.start()

    def feed(self, prepared: "Future[P] | None") -> None:
        """Hand over the next item, or None after the last."""
        self._fed.put(prepared)

    def ready(self) -> bool:
        """Return whether the next result is ready."""
        return not self._results.empty()

    def result(self) -> R:
        """Wait for the next result and return it, or raise the exception that ended the computation."""
        found = self._results.get()
        if found[1] is not None:
            raise found[1]
        return found[0]

    def stop(self) -> None:
        """Tell the thread to end after its current batch."""
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


def is_abandoned() -> bool:
    """Return whether the calling thread's work is no longer needed.

    Long work calls this now and then and stops on True, because Python waits for the thread at exit.
    """
    stopped: Event | None = getattr(_here, "stopped", None)
    return stopped is not None and stopped.is_set()


@contextmanager
def _preparation_thread(
    is_finalizing: Callable[[], bool] = sys.is_finalizing,  # bound now: globals may be gone at exit
) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of one thread; at the end, `is_abandoned` becomes True in it, and work not yet begun is dropped."""
    stopped = Event()
    thread = ThreadPoolExecutor(
        1, "lastword-prepare", initializer=setattr, initargs=(_here, "stopped", stopped)
    )
    try:
        yield thread
    finally:
        stopped.set()
        if not is_finalizing():  # at exit, the thread and what shutdown needs are already gone
            thread.shutdown(wait=False, cancel_futures=True)


@atexit.register
def _end_all() -> None:
    """End the computing threads when Python exits, before PyTorch is unloaded; wait for them up to a deadline."""
    deadline = time.monotonic() + _SECONDS_AT_END
    running = list(_running)
    for each in running:
        each.stop()
    for each in running:
        each.thread.join(max(0.0, deadline - time.monotonic()))
