"""One tensor merged in blocks by several threads: first the coefficients, then the elements, in order.

Block sums are added in the blocks' order, so the result does not depend on the number of threads.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lastword.errors import InputError
from lastword.weights.files.blocks import Workers, blocks
from lastword.weights.files.file_tensor import FlatTensor
from lastword.weights.merging import methods as merge
from lastword.weights.merging.recipe import Recipe
from lastword.weights.merging.rows import Rows

Merged = tuple[Tensor, Tensor | None]


class TensorMerge:
    """The N flat tensors of one name, with the base's, and the dtype of their merge."""

    def __init__(
        self,
        tensors: Sequence[FlatTensor],
        base: FlatTensor | None,
        dtype: torch.dtype,
        workers: Workers,
    ) -> None:
        self._rows, self._dtype, self._workers = Rows(tensors, base), dtype, workers
        # of the rows; float64 [N, N]
        self.products = torch.zeros((len(tensors), len(tensors)), dtype=torch.float64)
        self._spare: deque[Tensor] = deque()  # a block is never larger than those before it
        self._solved = False  # whether the products are known
        self.coefficients: list[float] = []

    def run(self, recipe: Recipe) -> Iterator[Tensor]:
        """Yield the merged elements, flat; the attributes are complete when the last one is taken.

        What is yielded holds until the next is asked for: its memory then takes a later block.
        """
        self.coefficients = self._solve(recipe)
        work = self._merged if self._solved else self._merged_and_products
        for merged, products in self._workers.map(work, blocks(self._rows.size)):
            if products is not None:
                self.products += products
            yield merged
            self._spare.append(merged)

    def _solve(self, recipe: Recipe) -> list[float]:
        """Give the c_i of this tensor, reading it where they depend on it."""
        own = recipe.parameters
        if recipe.method == "slerp":
            return merge.slerp_coefficients(self._gram(), own["t"])
        if recipe.method == "multislerp":
            shares = merge.shares(recipe.weights, normalize=recipe.normalize)
            return merge.multislerp_coefficients(self._gram(), shares, self._rows.pieces)
        shares = merge.shares(recipe.weights, normalize=recipe.normalize)
        return [own.get("lambda", 1.0) * share for share in shares]

    def _gram(self) -> Tensor:
        for products in self._workers.map(self._products, blocks(self._rows.size)):
            self.products += products
        self._solved = True
        return self.products

    def _products(self, block: slice) -> Tensor:
        return merge.gram((piece.rows for piece in self._rows.pieces(block)), self._rows.count)

    def _merged(self, block: slice, products: Tensor | None = None) -> Merged:
        merged = self._block(block.stop - block.start)
        for piece in self._rows.pieces(block):
            if products is not None:
                products += merge.inner_products(piece.rows)
            start, stop = (each - block.start for each in (piece.place.start, piece.place.stop))
            merged[start:stop] = merge.combined(piece, self.coefficients)
        # The sum is quick, and finite unless an element is not or the elements are huge.
        if not math.isfinite(float(merged.sum())) and not torch.isfinite(merged).all():
            found = float(merged[~merged.isfinite()][0])
            raise InputError(
                f"a merged value is not finite in {self._dtype}; got {found}, expected finite ones. "
                "Choose a wider dtype: or smaller weights"
            )
        return merged, products

    def _block(self, size: int) -> Tensor:
        """Give memory for a block: that of one already written, or fresh, which costs page faults."""
        try:
            return self._spare.pop()[:size]
        except IndexError:
            return torch.empty(size, dtype=self._dtype)

    def _merged_and_products(self, block: slice) -> Merged:
        """Also sum the inner products, where the coefficients did not need them beforehand."""
        return self._merged(block, torch.zeros_like(self.products))
