"""Pack a batch for the Triton kernels: all inputs of a forward in one int32 buffer, copied to the device in one piece.

A small batch is padded to a bucket, one of a few sizes. The batches of a bucket differ only in the contents of the
buffer, so one CUDA graph serves them all. The padding rows form a segment of their own: no row of a text reads them,
and they hold numbers. This module knows nothing about weights.
"""

from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_with_zeros

from lastword.batching.forest import Forest
from lastword.errors import InputError
from lastword.kernels import AttentionPlan, CpuPlan, KernelTables, attention_tile_rows
from lastword.kernels.attention_plan import final_table, query_tiles, segment_table
from lastword.kernels.caller_settings import CPU, integers

# Rows and last-token rows of the buckets. Padding last-token rows costs time only in the last layer.
BUCKET_ROWS = (16, 32, 64, 128, 256, 512, 1024, 2048)
BUCKET_FINALS = (1, 8, 64)
# A larger batch is not padded: its kernels take longer than the host needs to launch them.
MAX_BUCKET_ROWS = BUCKET_ROWS[-1]
# While a layer's matmuls have at most this many multiply-adds, launching the layer takes longer than computing it, so
# padding rows cost nothing. Predicted, not measured: 80 µs of launches at 500 TFLOP/s (bench/LOG.md, 2026-11-23).
_FREE_MULTIPLY_ADDS = 2 * 10**10
# Up to this many rows the weights are read for longer than they are multiplied, so padding rows cost nothing either.
_FREE_ROWS = 256
# In larger buckets, the most padding rows per row of a text.
_MAX_PADDING = 0.25
# Alignment of the buffer's parts, in int32 elements: 16 bytes, for which Triton specialises kernels.
_ALIGN = 4


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """The inputs of one forward, on its device: `ids`, `positions` [T], `final_rows` [N'] and the attention plan."""

    ids: Tensor
    positions: Tensor
    final_rows: Tensor
    plan: AttentionPlan

    @staticmethod
    def of(forest: Forest, device: torch.device, *, pad: bool = False) -> "ModelInputs":
        """Make the inputs for the CPU implementation.

        Args:
            forest: the batch.
            device: where the tensors go.
            pad: whether to add padding rows, up to the numbers of rows and of last-token rows that `recurring_rows`
                gives. A padding row is token 0 at position 0 and belongs to no segment; a padding last-token row is
                row 0.
        """
        parts = [forest.ids, forest.positions, integers(forest.final_rows)]
        if pad:
            parts = [_extend(part, recurring_rows(len(part))) for part in parts]
        ids, positions, final_rows = (part.to(device) for part in parts)
        finals = len(final_rows)
        plan = CpuPlan.of(forest.segments, forest.final_rows, device, num_finals=finals)
        return ModelInputs(ids, positions, final_rows, plan)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A padded size: the rows and last-token rows of its batches, and whether their segments may have ancestors."""

    rows: int
    finals: int
    tree: bool


@dataclass(frozen=True, slots=True)
class BucketLayout:
    """The sizes of the buffer's parts, padding included, and what decides how the attention kernels are launched.

    Args:
        rows: number of packed rows.
        finals: number of last-token rows.
        segments: number of segments.
        tiles: number of query tiles of the attention.
        tile_rows: rows per query tile.
        has_ancestors: whether any segment has a parent.
        rows_per_segment: average rows per segment.
        longest_path: upper bound for the number of rows on one path.
        bucket: the bucket, whose batches share this layout; None for the layout of a single batch.
    """

    rows: int
    finals: int
    segments: int
    tiles: int
    tile_rows: int
    has_ancestors: bool
    rows_per_segment: float
    longest_path: int
    bucket: Bucket | None

    def _shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of ids, positions, last-token rows, and the plan's segments, last-token rows and tiles."""
        lists: list[tuple[int, ...]] = [(self.rows,), (self.rows,), (self.finals,)]
        return [*lists, (self.segments, 4), (self.finals, 2), (self.tiles, 2)]

    @property
    def size(self) -> int:
        """Number of int32 elements in the buffer."""
        return sum(_align(prod(shape)) for shape in self._shapes())

    def _parts(self, buffer: Tensor) -> list[Tensor]:
        parts, start = [], 0
        for shape in self._shapes():
            parts.append(buffer[start : start + prod(shape)].view(shape))
            start += _align(prod(shape))
        return parts

    def write(self, forest: Forest, buffer: Tensor) -> None:
        """Write a batch into a buffer [size] on the host.

        The padding rows, token 0 at position 0, are a segment of their own, so that attention gives numbers for them
        too. A padding last-token row is row 0 and sees only that row. Unused tiles and segments have no rows.
        """
        every = forest.segments
        padding = self.rows - forest.tokens_computed
        if padding:
            every = every.with_root(forest.tokens_computed, padding)
        buffer.zero_()
        ids, positions, final_rows, segments, finals, tiles = self._parts(buffer)
        _fill(ids, forest.ids, 0)
        _fill(positions, forest.positions, 0)
        _fill(final_rows, integers(forest.final_rows), 0)
        _fill(segments, segment_table(every), (0, 0, -1, 0))
        _fill(finals, final_table(every, forest.final_rows), (every.start.index(0), 1))
        _fill(tiles, query_tiles(every, self.tile_rows), (self.segments - 1, 0))

    def read(self, buffer: Tensor) -> ModelInputs:
        """View a buffer [size], on any device, as the inputs of a forward."""
        ids, positions, final_rows, segments, finals, tiles = self._parts(buffer)
        plan = KernelTables(
            segments, finals, tiles, tile_rows=self.tile_rows, has_ancestors=self.has_ancestors,
            rows_per_segment=self.rows_per_segment, longest_path=self.longest_path,
        )  # fmt: skip
        return ModelInputs(ids, positions, final_rows, plan)


class Packer:
    """Packs batches for a model.

    Args:
        device: where the model computes.
        dtype: the compute dtype.
        group: query heads per KV head.
        layer_weights: number of weights of a layer's matmuls.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, group: int, layer_weights: int
    ) -> None:
        self._tile_rows = partial(attention_tile_rows, dtype, device, group=group)
        self._pin = device.type == "cuda"
        self.free_rows = max(_FREE_ROWS, _FREE_MULTIPLY_ADDS // layer_weights)

    def pack(self, forest: Forest, *, pad: bool = True) -> tuple[BucketLayout, Tensor]:
        """Return the batch's layout and its buffer on the host.

        For a GPU the buffer is in pinned memory. The caller may drop the buffer before an asynchronous copy to the
        device has ended; PyTorch keeps the memory until then.

        Args:
            forest: the batch.
            pad: whether to pad the batch to a bucket, if one is large enough.
        """
        rows, finals = forest.tokens_computed, len(forest.final_rows)
        tree = forest.segments.has_ancestors()
        bucket = bucket_of(rows, finals, tree=tree, free_rows=self.free_rows) if pad else None
        layout = self._exact(forest) if bucket is None else self.bucket_layout(bucket)
        return layout, self.fill(layout, forest)

    def fill(self, layout: BucketLayout, forest: Forest) -> Tensor:
        """Return the buffer of a batch in a layout, on the host."""
        buffer = torch.empty(layout.size, dtype=torch.int32, device=CPU, pin_memory=self._pin)
        layout.write(forest, buffer)
        return buffer

    def bucket_layout(self, bucket: Bucket) -> BucketLayout:
        """Return the layout of a bucket.

        Each segment contains the last token of some text, so `finals` segments suffice for the texts; there is one more
        for the padding rows, and one without rows.
        """
        rows, finals = bucket.rows, bucket.finals
        average = rows / finals
        tile_rows = self._tile_rows(tree=bucket.tree, rows_per_segment=average)
        return BucketLayout(
            rows, finals, finals + 2, min(rows, rows // tile_rows + finals + 1), tile_rows,
            has_ancestors=bucket.tree, rows_per_segment=average, longest_path=rows, bucket=bucket,
        )  # fmt: skip

    def _exact(self, forest: Forest) -> BucketLayout:
        segments = forest.segments
        tree, average = segments.has_ancestors(), segments.rows_per_segment()
        tile_rows = self._tile_rows(tree=tree, rows_per_segment=average)
        tiles = sum(-(-length // tile_rows) for length in segments.length)
        return BucketLayout(
            forest.tokens_computed, len(forest.final_rows), len(segments.start), tiles, tile_rows,
            has_ancestors=tree, rows_per_segment=average, longest_path=segments.longest_path(),
            bucket=None,
        )  # fmt: skip


def check_ids(forest: Forest, vocab_size: int) -> None:
    """Raise InputError for a token id without a row in the embedding table; a GPU would read beyond the table.

    The tokenizer's ids are checked earlier too, as are those that the server passes on (`runtime/results.py`). This is
    the last place where all ids are on the host.
    """
    low, high = map(int, torch.aminmax(forest.ids))
    if low < 0 or high >= vocab_size:
        raise InputError(
            "token ids",
            "beyond the vocabulary",
            got=f"id {low if low < 0 else high}",
            expected=f"0 to {vocab_size - 1}",
            remedy="Use the tokenizer that belongs to these weights.",
        )


def all_buckets(most_rows: int) -> list[Bucket]:
    """Return the buckets of batches of up to `most_rows` rows, largest first: graphs then need the least memory.

    A batch with one last-token row has one segment, so no bucket is for one with ancestors.
    """
    needed = [
        rows for i, rows in enumerate(BUCKET_ROWS) if i == 0 or BUCKET_ROWS[i - 1] < most_rows
    ]
    return [
        Bucket(rows, finals, tree)
        for rows in reversed(needed)
        for finals in sorted({min(finals, rows) for finals in BUCKET_FINALS}, reverse=True)
        for tree in (True, False)
        if finals > 1 or not tree
    ]


def bucket_of(rows: int, finals: int, *, tree: bool, free_rows: int) -> Bucket | None:
    """Return the smallest bucket that a batch fits into; None if there is none, or if padding would cost too much.

    Args:
        rows: number of packed rows.
        finals: number of last-token rows.
        tree: whether any segment has ancestors.
        free_rows: number of rows up to which padding costs nothing.
    """
    bucket_rows = next((each for each in BUCKET_ROWS if rows <= each), None)
    bucket_finals = next((each for each in BUCKET_FINALS if finals <= each), None)
    if bucket_rows is None or bucket_finals is None:
        return None
    if bucket_rows > free_rows and bucket_rows - rows > _MAX_PADDING * rows:
        return None
    return Bucket(bucket_rows, min(bucket_finals, bucket_rows), tree)


def recurring_rows(rows: int) -> int:
    """Round a number of rows up to one of about 16 numbers per power of two.

    At most 3 rows are added up to 32 rows, at most 7 up to 256, and about 6 % at most beyond. A single row and more
    than `MAX_BUCKET_ROWS` rows stay as they are.

    oneDNN generates code for each new number of rows of a matmul. That takes 1 ms for few rows and up to 15 ms for
    many, about the time of the matmul itself. oneDNN keeps a limited amount of such code
    (`runtime/process_tuning.py`; bench/LOG.md, 2026-11-29).
    """
    if rows <= 1 or rows > MAX_BUCKET_ROWS:
        return rows
    step = max(4 if rows <= 32 else 8, (1 << (rows - 1).bit_length()) >> 5)
    return -(-rows // step) * step


def _extend(part: Tensor, length: int) -> Tensor:
    """Append zeros to a vector until it has `length` elements."""
    return pad_with_zeros(part, (0, length - len(part))) if len(part) < length else part


def _fill(part: Tensor, rows: Tensor, filler: int | tuple[int, ...]) -> None:
    """Write `rows` to the beginning of a part, and `filler` to each row after them."""
    part[: len(rows)] = rows
    part[len(rows) :] = torch.tensor(filler, dtype=part.dtype, device=part.device)


def _align(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
