"""The token budget of batches, and what happens to a batch that does not fit in the device's memory: it is halved.

This module knows forests and functions that compute them, but no texts or models.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.errors import LastwordWarning
from lastword.runtime.runner import Wait

# Number of batches near the current maximum that must fit before larger ones are tried again. The number doubles after
# each failed attempt.
_PATIENCE = 32
_MOST_PATIENCE = 1024


class BatchBudget:
    """The maximum number of tokens per batch, shared by all calls of one Embedder or Reranker.

    `limit` comes from the caller or the device; `tokens` is the current maximum. When memory runs out, `tokens` becomes
    half the size of the batch that failed. Once 32 batches of at least half of `tokens` have fitted, `tokens` doubles,
    up to the limit. After each doubling that fails, twice as many batches must fit first, up to 1,024.

    `failures` counts the batches so far that did not fit and were divided.

    Args:
        limit: maximum tokens per batch if memory suffices.
        device: names of the devices, for the warning.
    """

    def __init__(self, limit: int, device: str) -> None:
        self._device, self._warned = device, False
        self.failures = 0
        self.limit = limit

    @property
    def limit(self) -> int:
        """Maximum tokens per batch if memory suffices. Setting it resets the current maximum."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = self.tokens = limit
        self._patience, self._fitted, self._retried = _PATIENCE, 0, False

    def record_success(self, tokens: int) -> None:
        """Count a batch of `tokens` that fitted, if `tokens` is at least half the current maximum.

        After enough such batches, double the current maximum, up to the limit.
        """
        if 2 * tokens < self.tokens or self.tokens >= self._limit:
            return
        self._fitted += 1
        if self._fitted >= self._patience:
            self.tokens, self._fitted = min(2 * self.tokens, self._limit), 0
            self._retried = True

    def lower(self, tokens: int) -> None:
        """Set the current maximum to half of `tokens`, the size of a batch that ran out of memory; warn the first time.

        A batch larger than the current maximum is only counted, since it was planned before the maximum fell.
        """
        self.failures += 1
        if tokens > self.tokens:
            return
        if self._retried:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self.tokens, self._fitted, self._retried = max(1, tokens // 2), 0, False
        if not self._warned:
            self._warned = True
            warnings.warn(
                LastwordWarning(
                    "max_batch_tokens",
                    f"{self._device} is out of memory at {tokens} tokens per batch; smaller batches follow",
                    remedy="Set it lower to avoid failed attempts.",
                ),
                stacklevel=2,
            )

    def split_to_fit(self, forest: Forest) -> list[Forest]:
        """Split a batch that exceeds the current maximum; a single text may exceed it."""
        if forest.tokens_computed <= self.tokens or len(forest.final_rows) == 1:
            return [forest]
        return [part for half in forest.halves() for part in self.split_to_fit(half)]


def compute_parts(
    forest: Forest, wait: Wait, start: Callable[[Forest], Wait], budget: BatchBudget
) -> Iterator[tuple[Forest, Tensor | Exception]]:
    """Wait for a batch; if it does not fit in the device's memory, split it and compute its halves.

    Args:
        forest: the batch.
        wait: waits for the batch and returns its tensor.
        start: starts a part of the batch; returns a function that waits for its tensor.
        budget: is told for each part whether it fitted.

    Yields:
        Each part with its tensor or its error. A single text that does not fit has a `torch.OutOfMemoryError`.
    """
    parts = [(forest, wait)]
    while parts:
        part, wait = parts.pop()
        result = _result_of(wait)
        if isinstance(result, torch.OutOfMemoryError) and len(part.final_rows) > 1:
            budget.lower(part.tokens_computed)
            parts += [(half, start(half)) for half in part.halves()][::-1]
        else:
            if isinstance(result, Tensor):
                budget.record_success(part.tokens_computed)
            yield part, result


def _result_of(wait: Wait) -> Tensor | Exception:
    """Return what `wait` returns or raises. An OutOfMemoryError loses its traceback, whose frames may hold memory."""
    try:
        return wait()
    except torch.OutOfMemoryError as error:
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001  it belongs to the texts of this batch
        return error
