"""How many tokens a batch may have, and what happens to one that does not fit in the device's memory.

Such a batch makes way for its halves. Knows forests and functions that compute them, neither texts nor models.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.errors import LastwordWarning
from lastword.runtime.runner import Wait

# Full batches that must fit before larger ones are tried again; twice as many after each attempt that failed.
_PATIENCE = 32
_MOST_PATIENCE = 1024


class BatchBudget:
    """The tokens of a batch: `limit` by the caller or the device, `tokens` now, for all calls of one Embedder.

    Where memory runs out, `tokens` falls to half of the batch that failed. After a number of full batches that fitted,
    twice as many tokens are tried again, up to the limit.
    """

    def __init__(self, limit: int, device: str) -> None:
        self._device, self._warned = device, False
        self.limit = limit

    @property
    def limit(self) -> int:
        """The tokens of a batch where memory suffices; setting it starts anew."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = self.tokens = limit
        self._patience, self._fitted, self._retried = _PATIENCE, 0, False

    def fitted(self, tokens: int) -> None:
        """Take note of a batch that was computed; only a full one says that memory suffices."""
        if 2 * tokens < self.tokens or self.tokens >= self._limit:
            return
        self._fitted += 1
        if self._fitted >= self._patience:
            self.tokens, self._fitted = min(2 * self.tokens, self._limit), 0
            self._retried = True

    def lower(self, tokens: int) -> None:
        """Halve the batches to come where one of so many tokens ran out of memory, and say so once.

        A batch over the budget, planned before it fell, tells nothing new.
        """
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

    def within(self, forest: Forest) -> list[Forest]:
        """Split a batch that was planned before the budget fell; one text alone may exceed it."""
        if forest.tokens_computed <= self.tokens or len(forest.final_rows) == 1:
            return [forest]
        return [part for half in forest.halves() for part in self.within(half)]


def computed_parts(
    forest: Forest, wait: Wait, start: Callable[[Forest], Wait], budget: BatchBudget
) -> Iterator[tuple[Forest, Tensor | Exception]]:
    """Wait for a batch; one that does not fit in the device's memory makes way for its halves.

    Args:
        forest: the batch.
        wait: gives its tensor.
        start: begins a part of it.
        budget: told of each part whether it fitted.

    Yields:
        Each part with its tensor, or with the error that it ends in: `torch.OutOfMemoryError` where one text alone
        does not fit.
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
                budget.fitted(part.tokens_computed)
            yield part, result


def _result_of(wait: Wait) -> Tensor | Exception:
    """Give what a wait gives or raises; its frames, which may hold the device's memory, are let go."""
    try:
        return wait()
    except torch.OutOfMemoryError as error:
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001  it belongs to the texts of this batch
        return error
