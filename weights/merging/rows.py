"""The rows x_i - base of N flat tensors, piece by piece in float64, in buffers that are used again.

Fresh memory for every piece would cost more in page faults than the arithmetic in it.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lastword.weights.files.file_tensor import FlatTensor

PIECE = 1 << 17  # elements at a time: N rows of float64 then stay in a core's caches


class Piece(NamedTuple):
    """K elements of every tensor, float64; they hold until their thread reads the next piece."""

    place: slice  # of the elements in the tensor
    rows: Tensor  # [N, K], less the base
    base: Tensor | None  # [K]
    spare: Tensor  # [K], for a sum of the rows


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
