"""The attention plan of a batch: which packed rows attend to which.

`Segments` describes the batch on the host. From the segments the plan is built once per batch, in the form that the
implementation reads: a `CpuPlan` of dense blocks for PyTorch, or `KernelTables`, small int32 tables, for Triton.
This module works with the indices of packed rows only and never sees token ids.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lastword.errors import ConfigError
from lastword.kernels.caller_settings import CPU, count_up, integers
from lastword.kernels.gpu.block_sizes import attention_tile_rows

# Query rows per matmul. Smaller tiles waste less work above the diagonal; 32 to 128 are equally fast (bench/LOG.md).
TILE_ROWS = 64
# Segments of equal shape share a block until its paths have this many rows in all. The keys and values of such a block
# take 128 MB for KH·D = 1024 in fp32.
_KV_ROWS = 16_384

# A slice for consecutive rows, or int64 indices for any rows.
RowIndex = slice | Tensor
# One pair per group of texts with equally long paths: the texts' indices [B], and the rows of their paths [B, keys].
Finals = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Segments:
    """A batch's segments on the host: runs of consecutive rows, each with at most one parent.

    A segment's path runs from a root down to the segment. It consists of each ancestor's own rows up to the fork,
    and then of the segment's own rows. For segment s:

    * `start[s]`: its first row, counting the rows of cached prompts first, then the packed rows;
    * `length[s]`: its number of rows;
    * `parent[s]`: its parent segment, or -1 for a root;
    * `fork[s]`: how many of the parent's own rows are on the path, 0 for a root;
    * `depth[s]`: the total number of ancestor rows on the path.

    The first `cached` rows belong to prompts whose keys and values are known, so these rows are not computed. They
    are in `k` and `v` but not in `q`: row r of `k` and row r - `cached` of `q` belong to the same token.
    """

    start: list[int]
    length: list[int]
    parent: list[int]
    fork: list[int]
    depth: list[int]
    cached: int = 0

    def with_root(self, start: int, length: int) -> "Segments":
        """Return these segments and one more, without ancestors."""
        return replace(
            self,
            start=[*self.start, start],
            length=[*self.length, length],
            parent=[*self.parent, -1],
            fork=[*self.fork, 0],
            depth=[*self.depth, 0],
        )

    def to_compute(self) -> list[int]:
        """Return the indices of the segments to compute: all except those of cached prompts."""
        return [s for s, start in enumerate(self.start) if start >= self.cached]

    def owners(self, rows: list[int]) -> list[int]:
        """Return the index of each row's segment; as in `start`, the rows of cached prompts have the lowest numbers."""
        order = sorted(range(len(self.start)), key=self.start.__getitem__)
        starts = integers([self.start[s] for s in order])
        found = torch.searchsorted(starts, integers(rows), right=True) - 1
        return [order[i] for i in found.tolist()]

    def has_ancestors(self) -> bool:
        """Return whether any segment forks off another."""
        return any(parent >= 0 for parent in self.parent)

    def rows_per_segment(self) -> float:
        """Return the average number of rows per segment."""
        return sum(self.length) / max(1, len(self.length))

    def longest_path(self) -> int:
        """Return the number of rows of the longest path."""
        return max(depth + length for depth, length in zip(self.depth, self.length, strict=True))


class AttentionPlan(Protocol):
    """The plan argument of the operations: a `CpuPlan` for PyTorch, `KernelTables` for the Triton kernels."""

    @property
    def num_finals(self) -> int:
        """Number N of last-token rows, which are the query rows of `final_attention`."""

    @property
    def cached(self) -> int:
        """Number of rows of k and v that come before those of q: the keys and values of cached prompts."""


@dataclass(frozen=True, slots=True)
class Block:
    """Segments of equal shape, for which attention is computed together.

    * `count`: number of segments, B in shapes; 1 if `own` > TILE_ROWS, because such a segment is computed tile by
      tile (`rows_between`);
    * `own`: number of own rows of each segment;
    * `above`: number of ancestor rows of each segment;
    * `rows`: indices in q of the segments' own rows, [B·own];
    * `path`: indices in k and v of the rows of the segments' paths, ancestors first, [B·(above + own)].
    """

    count: int
    own: int
    above: int
    rows: RowIndex
    path: RowIndex

    def rows_between(self, low: int, high: int) -> RowIndex:
        """Return the indices in q of own rows `low` to `high` - 1 of each segment.

        If the block has several segments, `low` must be 0 and `high` must be `own`.
        """
        low, high = low * self.count, high * self.count
        if isinstance(self.rows, slice):
            return slice(self.rows.start + low, self.rows.start + high)
        return self.rows[low:high]


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The attention plan for PyTorch: a few matmuls on dense blocks.

    `forest_attention` uses `blocks`, which cover all computed rows. `final_attention` uses `finals`, which cover the
    last-token rows. Rows of q that the plan does not cover are padding; attention returns zeros for them.
    """

    segments: Segments
    final_rows: list[int]
    blocks: tuple[Block, ...]
    finals: Finals
    num_finals: int

    @staticmethod
    def of(
        segments: Segments,
        final_rows: list[int],
        device: torch.device,
        *,
        num_finals: int | None = None,
    ) -> "CpuPlan":
        """Build the plan of a batch.

        Args:
            segments: the batch's segments.
            final_rows: for each text, the index in q of its last-token row.
            device: device of the index tensors.
            num_finals: number of last-token rows including padding; None for no padding.
        """
        paths = _Paths(segments)
        blocks = segment_blocks(paths, device)
        finals = final_groups(paths, final_rows, device)
        count = len(final_rows) if num_finals is None else num_finals
        return CpuPlan(segments, final_rows, blocks, finals, count)

    @property
    def rows(self) -> int:
        """Number of rows of q without padding."""
        return sum(block.count * block.own for block in self.blocks)

    @property
    def cached(self) -> int:
        """Number of rows of k and v that come before those of q."""
        return self.segments.cached


class _Paths:
    """Finds the ancestor rows of each segment once, and keeps them for later calls."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self._before: dict[int, Tensor] = {}
        self._empty = integers([])

    def before(self, segment: int) -> Tensor:
        """Return the ancestor rows on the path of `segment`, root first."""
        parent = self.segments.parent[segment]
        if parent < 0:
            return self._empty
        if segment not in self._before:
            start = self.segments.start[parent]
            own = count_up(start, start + self.segments.fork[segment])
            self._before[segment] = torch.cat([self.before(parent), own])
        return self._before[segment]


def segment_blocks(paths: _Paths, device: torch.device) -> tuple[Block, ...]:
    """Group the segments to compute by their numbers of own and ancestor rows, so that attention takes few matmuls."""
    segments = paths.segments
    equal: dict[tuple[int, int], list[int]] = defaultdict(list)
    for s in segments.to_compute():
        equal[segments.length[s], segments.depth[s]].append(s)
    blocks: list[Block] = []
    for (own, above), members in equal.items():
        most = 1 if own > TILE_ROWS else max(1, _KV_ROWS // max(1, own + above))
        groups = _runs(segments, members, own) if above == 0 else [members]
        for group in groups:
            parts = (group[i : i + most] for i in range(0, len(group), most))
            blocks += [_block(paths, part, own, above, device) for part in parts]
    return tuple(blocks)


def _runs(segments: Segments, members: list[int], own: int) -> list[list[int]]:
    """Split segments of `own` rows each into runs of adjacent segments."""
    runs: list[list[int]] = []
    for s in sorted(members, key=segments.start.__getitem__):
        if runs and segments.start[s] == segments.start[runs[-1][-1]] + own:
            runs[-1].append(s)
        else:
            runs.append([s])
    return runs


def _block(paths: _Paths, members: list[int], own: int, above: int, device: torch.device) -> Block:
    starts, cached = [paths.segments.start[s] for s in members], paths.segments.cached
    if above == 0:
        end = starts[0] + len(members) * own
        own_rows = slice(starts[0] - cached, end - cached)
        return Block(len(members), own, above, own_rows, slice(starts[0], end))
    rows = integers(starts)[:, None] + count_up(0, own)
    path = torch.cat([torch.stack([paths.before(s) for s in members]), rows], dim=1)
    queries = _row_index((rows - cached).flatten(), device)
    return Block(len(members), own, above, queries, _row_index(path.flatten(), device))


def _row_index(rows: Tensor, device: torch.device) -> RowIndex:
    """Return consecutive rows as a slice, which reads without a copy; return other rows as indices on `device`."""
    first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
    if last - first + 1 == len(rows) and bool((rows.diff() == 1).all()):
        return slice(first, last + 1)
    return rows.to(device)


def final_groups(paths: _Paths, final_rows: list[int], device: torch.device) -> Finals:
    """Group the texts by the number of rows on their paths; `final_rows` are the texts' last-token rows in q."""
    segments = paths.segments
    groups: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    rows = [segments.cached + row for row in final_rows]
    for text, (row, segment) in enumerate(zip(rows, segments.owners(rows), strict=True)):
        own = row - segments.start[segment] + 1
        groups[segments.depth[segment] + own].append((text, segment, own))
    finals = []
    for keys, members in groups.items():
        step = max(1, _KV_ROWS // keys)
        for i in range(0, len(members), step):
            texts = integers([text for text, _, _ in members[i : i + step]])
            paths_of = [_path(paths, s, own) for _, s, own in members[i : i + step]]
            finals.append((texts.to(device), torch.stack(paths_of).to(device)))
    return tuple(finals)


def _path(paths: _Paths, segment: int, own: int) -> Tensor:
    start = paths.segments.start[segment]
    return torch.cat([paths.before(segment), count_up(start, start + own)])


@dataclass(frozen=True, slots=True)
class KernelTables:
    """The attention plan for the Triton kernels: tables on the device, and numbers that determine the launch.

    * `segment_table`: int32 [S, 4] of (start, length, parent, fork);
    * `final_table`: int32 [N, 2] of (segment with the text's last token, number of the text's keys in that segment);
    * `tiles`: int32 [tiles, 2] of (segment, first row in it), one per `tile_rows` packed rows, most keys first;
    * `has_ancestors`, `longest_path`: the results of these methods of `Segments`, or upper bounds;
    * `rows_per_segment`: the result of that method, or an estimate.

    Tables must be aligned to 16 bytes, because Triton would compile a kernel again for a different alignment. They may
    be longer than the batch needs, so that one CUDA graph can serve batches of different sizes: the last segment then
    has no rows, and the unused tiles point to it. Unused texts have one key, in the segment of row 0.
    """

    segment_table: Tensor
    final_table: Tensor
    tiles: Tensor
    tile_rows: int
    has_ancestors: bool
    rows_per_segment: float
    longest_path: int

    @staticmethod
    def of(
        segments: Segments, final_rows: list[int], device: torch.device, *, tile_rows: int
    ) -> "KernelTables":
        """Build the tables of a batch for a kernel that takes `tile_rows` rows per tile.

        `final_rows` has the packed row of each text's last token.
        """

        def on_device(table: Tensor) -> Tensor:
            return table.to(device, non_blocking=True)

        return KernelTables(
            on_device(segment_table(segments)),
            on_device(final_table(segments, final_rows)),
            on_device(query_tiles(segments, tile_rows)),
            tile_rows=tile_rows,
            has_ancestors=segments.has_ancestors(),
            rows_per_segment=segments.rows_per_segment(),
            longest_path=segments.longest_path(),
        )

    @property
    def num_finals(self) -> int:
        """Number N of last-token rows, which are the query rows of `final_attention`."""
        return len(self.final_table)

    @property
    def cached(self) -> int:
        """Number of rows of cached prompts: always 0, because the GPU kernels compute prompts like other rows."""
        return 0

    def tiles_of(self, tile_rows: int) -> Tensor:
        """Return the tiles, after checking that they have `tile_rows` rows each, as many as the kernel takes.

        Raises:
            ConfigError: the plan's tiles have a different number of rows.
        """
        if tile_rows != self.tile_rows:
            raise ConfigError(
                "attention plan",
                "the plan has a different tile size",
                got=f"a kernel with {tile_rows} rows per tile",
                expected=f"{self.tile_rows} rows, as in the plan",
                remedy="Build the plan with kernel_tables for this dtype and number of heads.",
            )
        return self.tiles


def kernel_tables(
    segments: Segments,
    final_rows: list[int],
    device: torch.device,
    *,
    dtype: torch.dtype,
    group: int,
) -> KernelTables:
    """Build the tables of a batch for operations in `dtype` with `group` = G query heads per KV head.

    `final_rows` has the packed row of each text's last token.
    """
    tile_rows = attention_tile_rows(
        dtype,
        device,
        group=group,
        tree=segments.has_ancestors(),
        rows_per_segment=segments.rows_per_segment(),
    )
    return KernelTables.of(segments, final_rows, device, tile_rows=tile_rows)


def segment_table(segments: Segments) -> Tensor:
    """Build the table of segments: int32 [S, 4] of (start, length, parent, fork)."""
    columns = [segments.start, segments.length, segments.parent, segments.fork]
    return torch.tensor(columns, dtype=torch.int32, device=CPU).T.contiguous()


def query_tiles(segments: Segments, tile_rows: int) -> Tensor:
    """Split the segments into tiles of packed rows: int32 [tiles, 2] of (segment, first row in it), most keys first.

    Tiles with the most keys take longest. They start first, so that the GPU does not wait for a long tile at the end.
    """
    length = integers(segments.length)
    counts = (length + tile_rows - 1) // tile_rows
    segment = torch.repeat_interleave(counts)
    first = (count_up(0, len(segment)) - (counts.cumsum(0) - counts)[segment]) * tile_rows
    keys = integers(segments.depth)[segment] + (first + tile_rows).minimum(length[segment])
    order = keys.argsort(descending=True, stable=True)
    return torch.stack([segment, first], dim=1)[order].to(torch.int32)


def final_table(segments: Segments, final_rows: list[int]) -> Tensor:
    """Build the table of texts: int32 [N, 2] of (segment, number of keys in it up to the text's last token)."""
    segment = integers(segments.owners(final_rows))
    own = integers(final_rows) - integers(segments.start)[segment] + 1
    return torch.stack([segment, own], dim=1).to(torch.int32)
