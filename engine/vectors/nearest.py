"""Keep the nearest items to each query, in one pass over any number of vectors and in constant memory."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from lastword.errors import InputError

Item = TypeVar("Item")
Similarity = Callable[[Tensor, Tensor], Tensor]
# Decimals kept of a score; further ones are rounding errors, which may differ between batches.
DECIMALS = 6


class _Entry(NamedTuple):
    """An item with its score; the smallest entry ranks last, so a heap drops it first."""

    score: float
    order: int  # negative position: among equal scores, the earlier item ranks first
    item: object


class Nearest(Generic[Item]):
    """The items nearest to each query so far.

    Args:
        queries: [Q, dim], the vectors of the queries.
        similarity: takes [Q, dim] and [n, dim], and returns the scores [Q, n].
        most: the number of items to keep for each query.
    """

    def __init__(self, queries: Tensor, similarity: Similarity, most: int) -> None:
        self._queries, self._similarity, self._most = queries, similarity, most
        self._heaps: list[list[_Entry]] = [[] for _ in queries]
        # What a score must exceed, once a query has `most` items.
        self._floors = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device="cpu")
        self._position = 0

    def add(self, matrix: Tensor, items: Sequence[Item]) -> None:
        """Compare the next vectors [n, dim] with every query; row i belongs to `items[i]`.

        Of items with equal scores, rounded to `DECIMALS`, the earlier ones are kept and rank first.

        Raises:
            InputError: a score is not finite; the error's `index` is the row.
        """
        scores = self._similarity(self._queries, matrix).cpu()  # [Q, n]
        # The sum is quick to check. It can overflow although every score is finite, so then each score is checked.
        if not bool(scores.sum().isfinite()) and not bool(scores.isfinite().all()):
            row = int((~scores.isfinite()).any(0).nonzero()[0])
            raise InputError(f"row {row}", "the vector is damaged: not finite", index=row)
        queries, rows, values = self._candidates(scores)
        for query, row, value in zip(queries.tolist(), rows.tolist(), values.tolist(), strict=True):
            heap = self._heaps[query]
            entry = _Entry(value, -self._position - row, items[row])
            if len(heap) < self._most:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)
        for query in set(queries.tolist()):
            if len(self._heaps[query]) == self._most:
                self._floors[query] = self._heaps[query][0].score
        self._position += len(items)

    def _candidates(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (queries, rows, rounded scores) of all scores that may be among the nearest, query by query."""
        most, (many, rows) = self._most, scores.shape
        near = scores >= self._floors.float()[:, None]
        if rows > most and int(near.count_nonzero()) > many * most:
            last = scores.topk(most, dim=1).values[:, -1]
            # Scores that differ by less may become equal when they are rounded.
            near &= scores >= (last.double() - 10.0**-DECIMALS).float()[:, None]
        queries, places = near.nonzero(as_tuple=True)
        values = scores[queries, places].double().round(decimals=DECIMALS)
        better = values > self._floors[queries]
        return queries[better], places[better], values[better]

    def ranked(self) -> Iterator[list[tuple[float, int, Item]]]:
        """Yield for each query its items, the best first: (score, position, item)."""
        for heap in self._heaps:
            best = sorted(heap, reverse=True)
            yield [(score, -order, item) for score, order, item in best]  # type: ignore[misc]
