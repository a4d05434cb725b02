"""How many tokens a batch may have, and what happens to one that does not fit in the device's memory.

Such a batch makes way for its halves. Knows forests and functions that compute them, neither texts nor models.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.errors import LastwordWarning

# Batches that must fit before a larger one is tried again; twice as many after each attempt that failed.
_PATIENCE = 32
_MOST_PATIENCE = 1024

Wait = Callable[[], Tensor]


class BatchBudget:
    """The tokens of a batch: `limit` by the caller or the device, `tokens` now.

    Where memory runs out, `tokens` falls to half of the batch that failed; each call begins with twice as many again,
    and a long call tries twice as many after a number of batches that fitted, up to the limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self.tokens = limit
        self._patience, self._fitted = _PATIENCE, 0
        self._warned = False

    @property
    def limit(self) -> int:
        """The tokens of a batch where memory suffices; setting it starts anew."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = self.tokens = limit
        self._patience, self._fitted = _PATIENCE, 0

    def new_call(self) -> None:
        """Try larger batches again."""
        self._raise()

    def fitted(self) -> None:
        """Take note of a batch that was computed."""
        self._fitted += 1
        if self.tokens < self._limit and self._fitted >= self._patience:
            self._raise()

    def lower(self, tokens: int, device: str) -> None:
        """Halve the batches to come where one of so many tokens ran out of memory, and say so once."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                LastwordWarning(
                    "max_batch_tokens",
                    f"{device} is out of memory at {tokens} tokens per batch; it is split, and smaller batches follow",
                    remedy="Set it lower to spare the attempts.",
                ),
                stacklevel=2,
            )
        self.tokens = min(self.tokens, max(1, tokens // 2))
        self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._fitted = 0

    def _raise(self) -> None:
        self.tokens, self._fitted = min(2 * self.tokens, self._limit), 0


def computed_parts(
    forest: Forest, wait: Wait, start: Callable[[Forest], Wait], too_large: Callable[[int], None]
) -> Iterator[tuple[Forest, Tensor | Exception]]:
    """Wait for a batch; one that does not fit in the device's memory makes way for its halves.

    Args:
        forest: the batch.
        wait: gives its tensor.
        start: begins a part of it.
        too_large: told the tokens of each part that did not fit.

    Yields:
        Each part with its tensor, or with the error that it ends in: `torch.OutOfMemoryError` where one text alone
        does not fit.
    """
    parts = [(forest, wait)]
    while parts:
        part, wait = parts.pop()
        result = _result_of(wait)
        if isinstance(result, torch.OutOfMemoryError) and len(part.final_rows) > 1:
            too_large(part.tokens_computed)
            parts += [(half, start(half)) for half in part.halves()][::-1]
        else:
            yield part, result


def _result_of(wait: Wait) -> Tensor | Exception:
    """Give what a wait gives or raises; its frames, which may hold the device's memory, are let go."""
    try:
        return wait()
    except torch.OutOfMemoryError as error:
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001  it belongs to the texts of this batch
        return error
