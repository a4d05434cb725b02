"""A tensor's elements worked on in blocks by as many threads as there are cores, results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

BLOCK = 1 << 20  # elements per task: 4 MiB of float32
_AHEAD = 2  # results a thread may lie ready for the writer

T = TypeVar("T")


def blocks(size: int) -> Iterator[slice]:
    """Cut `size` elements into slices of at most `BLOCK`."""
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))


class BlockThreads:
    """Threads that run torch on one core each; results come in the order of the tasks."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool, self._ahead = pool, _AHEAD * count

    def map(self, work: Callable[[slice], T], tasks: Iterable[slice]) -> Iterator[T]:
        """Run tasks, never more than a few ahead of the one whose result is taken."""
        waiting: deque[Future[T]] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(work, task))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)  # running ones still read what the caller may close next


@contextmanager
def block_threads() -> Iterator[BlockThreads]:
    """Start one thread per core, with torch's own threads off so that the two do not multiply."""
    before = torch.get_num_threads()
    count = max(1, min(before, os.cpu_count() or 1))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="lastword-blocks") as pool:
            yield BlockThreads(pool, count)
    finally:
        torch.set_num_threads(before)
