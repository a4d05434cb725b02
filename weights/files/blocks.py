"""Process a tensor's elements in blocks, in several threads, and yield the results in the order of the blocks."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

BLOCK = 1 << 20  # elements per task: 4 MiB of float32
_AHEAD = 2  # results per thread that may wait for the caller

T = TypeVar("T")


def blocks(size: int, unit: int = 1) -> Iterator[slice]:
    """Split `size` elements into slices of whole units of `unit` elements: at most `BLOCK` elements, or one unit."""
    step = max(1, BLOCK // unit) * unit
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


class BlockThreads:
    """Runs tasks in several threads, one core each, and yields the results in the order of the tasks."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        self._pool, self._ahead = pool, _AHEAD * count

    def map(self, work: Callable[[slice], T], tasks: Iterable[slice]) -> Iterator[T]:
        """Call `work` with each task and yield the results in order; only a few tasks run ahead of the caller."""
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
            wait(waiting)  # running tasks still read files, which the caller may close next


@contextmanager
def block_threads() -> Iterator[BlockThreads]:
    """Start as many threads as torch uses, at most one per core; in the `with` block torch uses one core per thread."""
    before = torch.get_num_threads()
    count = max(1, min(before, os.cpu_count() or 1))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="lastword-blocks") as pool:
            yield BlockThreads(pool, count)
    finally:
        torch.set_num_threads(before)
