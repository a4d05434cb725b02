"""One tensor merged in blocks by several threads: first the coefficients, then the elements, in order.

Block sums are added in the blocks' order, so the result does not depend on the number of threads. A block is
worked on in pieces, in buffers that are used again: fresh memory for every piece would cost more in page faults
than the arithmetic in it.
"""

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lastword.errors import InputError
from lastword.weights.files.blocks import BlockThreads, blocks
from lastword.weights.files.dtypes import dtype_name
from lastword.weights.files.file_tensor import FlatTensor
from lastword.weights.merging import methods
from lastword.weights.merging.recipe import Recipe

PIECE = 1 << 17  # elements at a time: N rows of float64 then stay in a core's caches

Merged = tuple[Tensor, Tensor | None]


class Piece(NamedTuple):
    """K elements of every tensor, float64; they hold until their thread reads the next piece."""

    place: slice  # of the elements in the tensor
    rows: Tensor  # [N, K], less the base
    base: Tensor | None  # [K]
    spare: Tensor  # [K], for a sum of the rows

    def weighted(self, coefficients: Sequence[float]) -> Tensor:
        """Sum `c_i row_i`: [K], in the spare memory."""
        total = torch.mul(self.rows[0], coefficients[0], out=self.spare)
        for row, coefficient in zip(self.rows[1:], coefficients[1:], strict=True):
            total.add_(row, alpha=coefficient)
        return total

    def merged(self, coefficients: Sequence[float]) -> Tensor:
        """Give `base + sum_i c_i row_i`: [K], to be rounded by the caller before the next piece."""
        total = self.weighted(coefficients)
        return total if self.base is None else total.add_(self.base)


class Rows:
    """N >= 1 flat tensors of one size, less the base where there is one; any thread may read them."""

    def __init__(self, tensors: Sequence[FlatTensor], base: FlatTensor | None) -> None:
        self.count, self.size = len(tensors), tensors[0].numel()
        self._tensors, self._base = tensors, base
        self._buffers = _Buffers(self.count + 2, min(PIECE, self.size))

    def pieces(self, block: slice | None = None) -> Iterator[Piece]:
        """Walk the tensors, or a block of them."""
        block = block or slice(0, self.size)
        for start in range(block.start, block.stop, PIECE):
            yield self._read(slice(start, min(start + PIECE, block.stop)))

    def _read(self, place: slice) -> Piece:
        buffers = self._buffers.held[:, : place.stop - place.start]
        rows, base, spare = buffers[: self.count], buffers[-2], buffers[-1]
        for row, tensor in zip(rows, self._tensors, strict=True):
            row.copy_(tensor[place])
        if self._base is None:
            return Piece(place, rows, None, spare)
        rows.sub_(base.copy_(self._base[place]))
        return Piece(place, rows, base, spare)


class _Buffers(threading.local):
    """Float64 [count, size] of the calling thread's own."""

    def __init__(self, count: int, size: int) -> None:
        self.held = torch.empty((count, size), dtype=torch.float64)


class TensorMerge:
    """The N flat tensors of one name, with the base's, and the dtype of their merge."""

    def __init__(
        self,
        tensors: Sequence[FlatTensor],
        base: FlatTensor | None,
        dtype: torch.dtype,
        threads: BlockThreads,
    ) -> None:
        self._rows, self._dtype, self._threads = Rows(tensors, base), dtype, threads
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
        for merged, products in self._threads.map(work, blocks(self._rows.size)):
            if products is not None:
                self.products += products
            yield merged
            self._spare.append(merged)

    def _solve(self, recipe: Recipe) -> list[float]:
        """Give the c_i of this tensor, reading it where they depend on it."""
        own = recipe.parameters
        if recipe.method == "slerp":
            return methods.slerp_coefficients(self._gram(), own["t"])
        if recipe.method == "multislerp":
            shares = methods.shares(recipe.weights, normalize=recipe.normalize)
            return methods.multislerp_coefficients(self._gram(), shares, self._squared_length)
        shares = methods.shares(recipe.weights, normalize=recipe.normalize)
        return [own.get("lambda", 1.0) * share for share in shares]

    def _gram(self) -> Tensor:
        for products in self._threads.map(self._products, blocks(self._rows.size)):
            self.products += products
        self._solved = True
        return self.products

    def _squared_length(self, coefficients: Sequence[float]) -> float:
        """Sum `c_i row_i` over the whole tensor, squared."""
        sums = (piece.weighted(coefficients) for piece in self._rows.pieces())
        return math.fsum(float(torch.dot(each, each)) for each in sums)

    def _products(self, block: slice) -> Tensor:
        return methods.gram((piece.rows for piece in self._rows.pieces(block)), self._rows.count)

    def _merged(self, block: slice, products: Tensor | None = None) -> Merged:
        merged = self._block(block.stop - block.start)
        for piece in self._rows.pieces(block):
            if products is not None:
                products += methods.inner_products(piece.rows)
            start, stop = (each - block.start for each in (piece.place.start, piece.place.stop))
            merged[start:stop] = piece.merged(self.coefficients)
        # The sum is quick, and finite unless an element is not or the elements are huge.
        if not math.isfinite(float(merged.sum())) and not torch.isfinite(merged).all():
            found = float(merged[~merged.isfinite()][0])
            raise InputError(
                "merge",
                f"a merged value is not finite in {dtype_name(self._dtype)}",
                got=str(found),
                expected="finite ones",
                remedy="Choose a wider dtype: or smaller weights.",
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
