"""The forest's segments as the PyTorch twins read them: dense blocks of equal segments. Knows rows only."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from lastword.kernels.segments import Segments

# Query rows of one product: few enough that little lies above the diagonal; 32 to 128 are as fast (bench/LOG.md).
TILE_ROWS = 64
# Rows of keys gathered for one block: bounds the copy at 128 MB for KH·D = 1024 in fp32.
_KV_ROWS = 16_384

RowIndex = slice | Tensor  # packed rows side by side, or any, int64


@dataclass(frozen=True, slots=True)
class Block:
    """`count` segments of `own` rows each, with `above` rows of ancestors before them.

    `count` is 1 where `own` > TILE_ROWS, that is where the block is read in tiles (`rows_between`).
    `rows`: the segments' rows [B·own]. `path`: those of their paths, ancestors first [B·(above + own)].
    """

    count: int
    own: int
    above: int
    rows: RowIndex
    path: RowIndex

    def rows_between(self, low: int, high: int) -> RowIndex:
        """Rows `low` to `high` of each segment, where these are all of them or there is one segment."""
        low, high = low * self.count, high * self.count
        if isinstance(self.rows, slice):
            return slice(self.rows.start + low, self.rows.start + high)
        return self.rows[low:high]


Finals = list[tuple[Tensor, Tensor]]  # texts [B] and the rows of their paths [B, keys]


class Paths:
    """The packed rows before a segment."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self._before: dict[int, Tensor] = {}
        self._empty = torch.empty(0, dtype=torch.int64)

    def before(self, segment: int) -> Tensor:
        """Rows of the ancestors of `segment`, root first."""
        parent = self.segments.parent[segment]
        if parent < 0:
            return self._empty
        if segment not in self._before:
            start = self.segments.start[parent]
            own = torch.arange(start, start + self.segments.fork[segment])
            self._before[segment] = torch.cat([self.before(parent), own])
        return self._before[segment]


def segment_blocks(paths: Paths, device: torch.device) -> list[Block]:
    """Group segments of equal (own rows, rows above), so that attention is few products on dense blocks."""
    segments = paths.segments
    equal: dict[tuple[int, int], list[int]] = defaultdict(list)
    for s, own in enumerate(segments.length):
        equal[own, segments.depth[s]].append(s)
    blocks = []
    for (own, above), members in equal.items():
        most = 1 if own > TILE_ROWS else max(1, _KV_ROWS // max(1, own + above))
        groups = _runs(segments, members, own) if above == 0 else [members]
        for group in groups:
            parts = (group[i : i + most] for i in range(0, len(group), most))
            blocks += [_block(paths, part, own, above, device) for part in parts]
    return blocks


def _runs(segments: Segments, members: list[int], own: int) -> list[list[int]]:
    """Part segments of `own` rows into those that lie side by side."""
    runs: list[list[int]] = []
    for s in sorted(members, key=segments.start.__getitem__):
        if runs and segments.start[s] == segments.start[runs[-1][-1]] + own:
            runs[-1].append(s)
        else:
            runs.append([s])
    return runs


def _block(paths: Paths, members: list[int], own: int, above: int, device: torch.device) -> Block:
    starts = [paths.segments.start[s] for s in members]
    if above == 0:
        side_by_side = slice(starts[0], starts[0] + len(members) * own)
        return Block(len(members), own, above, side_by_side, side_by_side)
    rows = torch.tensor(starts)[:, None] + torch.arange(own)
    path = torch.cat([torch.stack([paths.before(s) for s in members]), rows], dim=1)
    return Block(len(members), own, above, rows.flatten().to(device), path.flatten().to(device))


def final_groups(paths: Paths, final_rows: list[int], device: torch.device) -> Finals:
    """Group final rows by the length of their paths."""
    segments = paths.segments
    groups: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for text, (row, segment) in enumerate(
        zip(final_rows, segments.owners(final_rows), strict=True)
    ):
        own = row - segments.start[segment] + 1
        groups[segments.depth[segment] + own].append((text, segment, own))
    finals = []
    for keys, members in groups.items():
        step = max(1, _KV_ROWS // keys)
        for i in range(0, len(members), step):
            texts = torch.tensor([text for text, _, _ in members[i : i + step]])
            rows = torch.stack([_path(paths, s, own) for _, s, own in members[i : i + step]])
            finals.append((texts.to(device), rows.to(device)))
    return finals


def _path(paths: Paths, segment: int, own: int) -> Tensor:
    start = paths.segments.start[segment]
    return torch.cat([paths.before(segment), torch.arange(start, start + own)])
