"""The forest's segments as the PyTorch twins read them: blocks of equal shape, one SDPA call each. Knows rows only."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from lastword.kernels.segments import Segments

# Rows of keys gathered for one SDPA call: bounds the copy at 128 MB for KH·D = 1024 in fp32.
_KV_ROWS = 16_384
# Query rows of one masked SDPA call: bounds the mask, and skips most keys above the diagonal.
_MASK_ROWS = 256


@dataclass(frozen=True, slots=True)
class Block:
    """`count` segments of `own` rows each, attended by one SDPA call.

    Without ancestors `kv_rows` is None and the rows are `start …` side by side. With ancestors `q_rows [B, rows]`
    attend to `kv_rows [B, keys]` under `mask [rows, keys]` (None: every key).
    """

    count: int
    own: int
    start: int
    q_rows: Tensor
    kv_rows: Tensor | None
    mask: Tensor | None


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
    """Group segments of equal (own rows, rows above), so that attention is few calls on dense blocks."""
    segments = paths.segments
    roots: dict[int, list[int]] = defaultdict(list)
    forked: dict[tuple[int, int], list[int]] = defaultdict(list)
    for s, own in enumerate(segments.length):
        if segments.parent[s] < 0:
            roots[own].append(s)
        else:
            forked[own, segments.depth[s]].append(s)
    blocks = []
    for own, members in roots.items():
        for first, count in _runs([segments.start[s] for s in members], own):
            q_rows = torch.arange(first, first + own)[None].to(device)
            blocks.append(Block(count, own, first, q_rows, None, None))
    for (own, above), members in forked.items():
        step = max(1, _KV_ROWS // (own + above))
        for i in range(0, len(members), step):
            blocks += _forked_blocks(paths, members[i : i + step], own, above, device)
    return blocks


def _runs(starts: list[int], own: int) -> list[tuple[int, int]]:
    """Join segments of `own` rows that lie side by side into (first row, count)."""
    runs: list[tuple[int, int]] = []
    for start in sorted(starts):
        if runs and start == runs[-1][0] + runs[-1][1] * own:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((start, 1))
    return runs


def _forked_blocks(
    paths: Paths,
    members: list[int],
    own: int,
    above: int,
    device: torch.device,
) -> list[Block]:
    own_rows = torch.tensor([paths.segments.start[s] for s in members])[:, None] + torch.arange(own)
    path_rows = torch.cat([torch.stack([paths.before(s) for s in members]), own_rows], dim=1)
    own_rows, path_rows = own_rows.to(device), path_rows.to(device)
    blocks = []
    for low in range(0, own, _MASK_ROWS):
        high = min(low + _MASK_ROWS, own)
        mask = None
        if own > 1:  # lower-right aligned: row i of the segment sees `above` + i + 1 keys
            mask = torch.ones(high - low, above + high, dtype=torch.bool, device=device)
            mask = mask.tril(above + low)
        rows = own_rows[:, low:high]
        blocks.append(Block(len(members), own, -1, rows, path_rows[:, : above + high], mask))
    return blocks


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
