"""Merge one tensor of several models: first compute one coefficient per model, then the elements of the result.

Several threads each process a block of elements. The blocks' sums are added in the order of the blocks, so the result
does not depend on the number of threads. A block is processed in pieces with reused buffers, because page faults in new
memory would take longer than the arithmetic.
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

PIECE = 1 << 17  # elements per piece; the float64 rows of a piece stay in a core's caches

Merged = tuple[Tensor, Tensor | None]


class Piece(NamedTuple):
    """The same K elements of each of the N tensors, in float64; valid until this thread reads the next piece."""

    place: slice  # position of the elements in the tensor
    rows: Tensor  # [N, K], minus the base if there is one
    base: Tensor | None  # [K]
    spare: Tensor  # [K], memory for a sum of the rows

    def weighted_sum(self, coefficients: Sequence[float]) -> Tensor:
        """Return the sum of `c_i row_i`: [K], in the spare memory."""
        total = torch.mul(self.rows[0], coefficients[0], out=self.spare)
        for row, coefficient in zip(self.rows[1:], coefficients[1:], strict=True):
            total.add_(row, alpha=coefficient)
        return total

    def merge(self, coefficients: Sequence[float]) -> Tensor:
        """Return `base + sum_i c_i row_i`: [K], in the spare memory."""
        total = self.weighted_sum(coefficients)
        return total if self.base is None else total.add_(self.base)


class RowReader:
    """Reads N >= 1 flat tensors of equal size piece by piece, minus the base, if any; threads may share a reader."""

    def __init__(self, tensors: Sequence[FlatTensor], base: FlatTensor | None) -> None:
        self.count, self.size = len(tensors), tensors[0].numel()
        self._tensors, self._base = tensors, base
        self._buffers = _Buffers(self.count + 2, min(PIECE, self.size))

    def pieces(self, block: slice | None = None) -> Iterator[Piece]:
        """Yield the tensors piece by piece: all elements, or only those in `block`."""
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
    """One float64 buffer [count, size] per thread."""

    def __init__(self, count: int, size: int) -> None:
        self.held = torch.empty((count, size), dtype=torch.float64, device="cpu")


class TensorMerge:
    """Merges one tensor of N models. With a base, it merges the differences from the base and adds the base.

    Args:
        tensors: the models' tensors, flat and of equal size.
        base: the base model's tensor, or None.
        dtype: the dtype of the result.
        threads: the threads for the arithmetic.
    """

    def __init__(
        self,
        tensors: Sequence[FlatTensor],
        base: FlatTensor | None,
        dtype: torch.dtype,
        threads: BlockThreads,
    ) -> None:
        self._rows, self._dtype, self._threads = RowReader(tensors, base), dtype, threads
        # Inner products of the rows, float64 [N, N].
        self.products = torch.zeros((len(tensors), len(tensors)), dtype=torch.float64, device="cpu")
        # Memory of blocks that have been written; a block is never larger than the blocks before it.
        self._spare: deque[Tensor] = deque()
        self._solved = False  # whether the inner products are known
        self.coefficients: list[float] = []

    def run(self, recipe: Recipe) -> Iterator[Tensor]:
        """Yield the merged elements, flat, in blocks; `products` and `coefficients` are complete after the last block.

        A block is valid until the next block is requested, because its memory is then reused.
        """
        self.coefficients = self._solve(recipe)
        work = self._merge_block if self._solved else self._merge_block_and_products
        for merged, products in self._threads.map(work, blocks(self._rows.size)):
            if products is not None:
                self.products += products
            yield merged
            self._spare.append(merged)

    def _solve(self, recipe: Recipe) -> list[float]:
        """Return the coefficients c_i of this tensor; read its data only if the method's coefficients depend on it."""
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
        """Return the squared length of the sum of `c_i row_i` over the whole tensor."""
        sums = (piece.weighted_sum(coefficients) for piece in self._rows.pieces())
        return math.fsum(float(torch.dot(each, each)) for each in sums)

    def _products(self, block: slice) -> Tensor:
        return methods.gram((piece.rows for piece in self._rows.pieces(block)), self._rows.count)

    def _merge_block(self, block: slice, products: Tensor | None = None) -> Merged:
        merged = self._block(block.stop - block.start)
        for piece in self._rows.pieces(block):
            if products is not None:
                products += methods.inner_products(piece.rows)
            start, stop = (each - block.start for each in (piece.place.start, piece.place.stop))
            merged[start:stop] = piece.merge(self.coefficients)
        # The sum is a fast first test: it is finite unless an element is not finite or the elements are huge.
        if not math.isfinite(float(merged.sum())) and not torch.isfinite(merged).all():
            found = float(merged[~merged.isfinite()][0])
            raise InputError(
                "merge",
                f"a merged value is not finite in {dtype_name(self._dtype)}",
                got=str(found),
                expected="finite values",
                remedy="Set a wider dtype: in the recipe, or use smaller weights.",
            )
        return merged, products

    def _block(self, size: int) -> Tensor:
        """Return memory for a block, if possible from a block already written: new memory would cost page faults."""
        try:
            return self._spare.pop()[:size]
        except IndexError:
            return torch.empty(size, dtype=self._dtype, device="cpu")

    def _merge_block_and_products(self, block: slice) -> Merged:
        """Merge a block and compute its inner products too, for the methods that do not need them beforehand."""
        return self._merge_block(block, torch.zeros_like(self.products))
