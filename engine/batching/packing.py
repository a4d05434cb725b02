"""Lays a batch out for the Triton kernels: all that a forward reads in one int32 buffer, one copy to the device.

Batches of up to 2,048 rows are padded to one of a few buckets, so that batches of one bucket differ in the buffer's
contents alone and a CUDA graph serves them all. No row of a text reads a row of padding. Knows forests and plans, no
weights.
"""

from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.kernels import AttentionPlan, CpuPlan, KernelTables, attention_tile_rows
from lastword.kernels.attention_plan import final_table, query_tiles, segment_table

# A batch of more rows runs as it is: its kernels take longer than the host needs to launch them.
MAX_BUCKET_ROWS = 2048
# Rows of a bucket: few while reading the weights takes all the time, then whole tiles of a matmul.
_FEW_ROWS = (16, 32, 64)
_TILE_ROWS = 128
# Final rows of a bucket: powers of this; padding costs in the last layer only.
_FINALS_STEP = 4
# int32 elements that the buffer's parts are aligned to: 16 bytes, as Triton specialises on.
_ALIGN = 4


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one forward reads, on its device: `ids`, `positions` int32 [T], `final_rows` [N], the attention's plan."""

    ids: Tensor
    positions: Tensor
    final_rows: Tensor
    plan: AttentionPlan

    @staticmethod
    def of(forest: Forest, device: torch.device) -> "Inputs":
        """The inputs as the CPU implementation takes them."""
        plan = CpuPlan.of(forest.segments, forest.final_rows, device)
        final_rows = torch.tensor(forest.final_rows, device=device)
        return Inputs(forest.ids.to(device), forest.positions.to(device), final_rows, plan)


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a batch's parts, and what of its plan decides how kernels are launched.

    `bucket`: whether they are those of a bucket, which many batches have, or of one batch.
    """

    rows: int
    finals: int
    segments: int
    tiles: int
    tile_rows: int
    has_ancestors: bool
    rows_per_segment: float
    longest_path: int
    bucket: bool

    def _shapes(self) -> list[tuple[int, ...]]:
        """Ids, positions, final rows, then the plan's segments, final rows and tiles."""
        lists: list[tuple[int, ...]] = [(self.rows,), (self.rows,), (self.finals,)]
        return [*lists, (self.segments, 4), (self.finals, 2), (self.tiles, 2)]

    @property
    def size(self) -> int:
        """Elements of the buffer."""
        return sum(_aligned(prod(shape)) for shape in self._shapes())

    def _parts(self, buffer: Tensor) -> list[Tensor]:
        parts, start = [], 0
        for shape in self._shapes():
            parts.append(buffer[start : start + prod(shape)].view(shape))
            start += _aligned(prod(shape))
        return parts

    def write(self, forest: Forest, buffer: Tensor) -> None:
        """Write a batch into a buffer [size] on the host.

        A row of padding is a token 0 at position 0 that no segment holds, a final row of padding is row 0. What is left
        over of the plan is of the last segment, which then has no rows.
        """
        nothing = (self.segments - 1, 0)
        buffer.zero_()
        ids, positions, final_rows, segments, finals, tiles = self._parts(buffer)
        _fill(ids, forest.ids, 0)
        _fill(positions, forest.positions, 0)
        _fill(final_rows, torch.tensor(forest.final_rows), 0)
        _fill(segments, segment_table(forest.segments), (0, 0, -1, 0))
        _fill(finals, final_table(forest.segments, forest.final_rows), nothing)
        _fill(tiles, query_tiles(forest.segments, self.tile_rows), nothing)

    def read(self, buffer: Tensor) -> Inputs:
        """View the buffer, on whatever device it is, as a forward's inputs."""
        ids, positions, final_rows, segments, finals, tiles = self._parts(buffer)
        plan = KernelTables(
            segments, finals, tiles, tile_rows=self.tile_rows, has_ancestors=self.has_ancestors,
            rows_per_segment=self.rows_per_segment, longest_path=self.longest_path,
        )  # fmt: skip
        return Inputs(ids, positions, final_rows, plan)


class Packer:
    """Packs batches for a model that computes in `dtype` on `device` with `group` = G query heads per KV head."""

    def __init__(self, device: torch.device, dtype: torch.dtype, group: int) -> None:
        self._tile_rows = partial(attention_tile_rows, dtype, device, group=group)
        self._pin = device.type == "cuda"

    def pack(self, forest: Forest, *, pad: bool = True) -> tuple[Layout, Tensor]:
        """Give the batch's layout, a bucket's where it fits one and `pad` is set, and its buffer on the host.

        The buffer is in pinned memory where the device is a GPU: a copy from it need not be waited for, as PyTorch
        keeps the memory until the copy is done.
        """
        bucket = bucket_of(forest.tokens_computed, len(forest.final_rows)) if pad else None
        layout = self._exact(forest) if bucket is None else self.bucket_layout(*bucket)
        buffer = torch.empty(layout.size, dtype=torch.int32, pin_memory=self._pin)
        layout.write(forest, buffer)
        return layout, buffer

    def bucket_layout(self, rows: int, finals: int) -> Layout:
        """Sizes that hold every batch of at most so many rows and distinct texts.

        A segment holds the final row of a text at least, so there are `finals` of them at most, and one of padding.
        """
        average = rows / finals
        tile_rows = self._tile_rows(tree=True, rows_per_segment=average)
        return Layout(
            rows, finals, finals + 1, min(rows, rows // tile_rows + finals), tile_rows,
            has_ancestors=True, rows_per_segment=average, longest_path=rows, bucket=True,
        )  # fmt: skip

    def _exact(self, forest: Forest) -> Layout:
        segments = forest.segments
        tree, average = segments.has_ancestors(), segments.rows_per_segment()
        tile_rows = self._tile_rows(tree=tree, rows_per_segment=average)
        tiles = sum(-(-length // tile_rows) for length in segments.length)
        return Layout(
            forest.tokens_computed, len(forest.final_rows), len(segments.start), tiles, tile_rows,
            has_ancestors=tree, rows_per_segment=average, longest_path=segments.longest_path(),
            bucket=False,
        )  # fmt: skip


def bucket_of(rows: int, finals: int) -> tuple[int, int] | None:
    """Rows and final rows of the smallest bucket that holds a batch; None for one that is larger than all."""
    if rows > MAX_BUCKET_ROWS:
        return None
    whole_tiles = -(-rows // _TILE_ROWS) * _TILE_ROWS
    bucket_rows = next((few for few in _FEW_ROWS if rows <= few), whole_tiles)
    bucket_finals = 1
    while bucket_finals < finals:
        bucket_finals *= _FINALS_STEP
    return bucket_rows, min(bucket_finals, bucket_rows)


def _fill(part: Tensor, rows: Tensor, filler: int | tuple[int, ...]) -> None:
    """Write rows at the beginning of a part, and the filler into all that is left."""
    part[: len(rows)] = rows
    part[len(rows) :] = torch.tensor(filler, dtype=part.dtype)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
