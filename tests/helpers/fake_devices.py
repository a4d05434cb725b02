"""A runner that imitates a device and records what it computed and when; and checks of lastword's threads."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.encode_options import EncodeOptions
from lastword.model.postprocess import VectorFormat

DIM = 4


def last_tokens(forest: Forest) -> Tensor:
    """Return a 'vector' [DIM] for each distinct text: its last token's id, its number of tokens, and zeros."""
    rows = torch.tensor(forest.final_rows)
    vectors = torch.zeros(len(rows), DIM)
    vectors[:, 0] = forest.ids[rows].float()
    vectors[:, 1] = forest.positions[rows].float() + 1
    return vectors


def options(dim: int = DIM, max_length: int = 1000, **others) -> EncodeOptions:
    return EncodeOptions("", max_length, VectorFormat(dim, normalize=False), **others)


class FakeDevice:
    """Computes one batch after the other in a thread, and takes `seconds` for each; `compute` may raise an error."""

    name = "fake"
    batch_tokens = 4096
    max_prompt_tokens = 0

    def __init__(
        self,
        seconds: float = 0.0,
        *,
        ahead: bool = True,
        depth: int = 3,
        compute: Callable[[Forest], Tensor] = last_tokens,
    ) -> None:
        self.ahead, self.depth, self.seconds, self.compute = ahead, depth, seconds, compute
        self.tasks, self.sizes, self.spans = [], [], []
        self._thread = ThreadPoolExecutor(1, "fake-device")

    def start(self, task, forest):
        self.tasks.append(task)
        self.sizes.append(forest.tokens_computed)
        return self._thread.submit(self._run, forest).result

    def _run(self, forest: Forest) -> Tensor:
        began = time.perf_counter()
        if self.seconds:
            time.sleep(self.seconds)
        result = self.compute(forest)
        self.spans.append((began, time.perf_counter()))
        return result

    def warm_up(self, most_rows: int) -> None:
        self.warmed = most_rows

    def close(self) -> None:
        self._thread.shutdown()

    @property
    def busy(self) -> float:
        """The share of time in which it computed, from the start of the first batch to the start of the last."""
        idle = sum(after[0] - before[1] for before, after in pairwise(self.spans))
        return 1 - idle / (self.spans[-1][1] - self.spans[0][0])


class ByBatch(FakeDevice):
    """Gives vectors that depend on the whole batch, more than those of a real device do, so that a test sees it."""

    def start(self, task, forest):
        def compute(forest: Forest) -> Tensor:
            vectors = torch.ones(len(forest.final_rows), task.dim or self.dim)
            vectors[:, :DIM] = last_tokens(forest)
            vectors[:, DIM - 1] = forest.ids.sum()
            return vectors

        self.compute = compute
        return super().start(task, forest)

    def __init__(self, dim: int, **others) -> None:
        super().__init__(**others)
        self.dim = dim


def running() -> list[str]:
    """List lastword's own threads."""
    return [t.name for t in threading.enumerate() if t.name.startswith("lastword-")]


def none_left(seconds: float = 10) -> bool:
    """Wait up to `seconds` for lastword's threads to end, because Ctrl-C does not; return whether all have ended."""
    deadline = time.monotonic() + seconds
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running()
