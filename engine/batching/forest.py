"""Packs token lists into forests: texts that begin alike share the rows of their common prefix.

A forest is a set of segments, runs of consecutive packed rows. A segment forks off its parent after the parent's first
`fork` rows; a row's path is its segment's ancestors up to the forks and the segment up to itself. Attention is causal,
so every row has exactly the value it would have in a run of its own. Knows token ids, not texts, weights or devices.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lastword.kernels import Segments

# Fork where at least this many tokens of one segment are shared: fewer cost more in attention than they save.
MIN_SHARED = 8
# Segments on the longest path; deeper forks copy their shared rows to the level above.
MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Forest:
    """One batch of N texts, N' of them distinct, in T packed rows and S segments.

    `ids`, `positions`: int32 [T]. `final_rows`: the row of each distinct text's last token, N' of them.
    `texts`: the caller's index of each text, int64 [N]; `distinct`: which of the N' it is, int64 [N].
    """

    ids: Tensor
    positions: Tensor
    segments: Segments
    final_rows: list[int]
    texts: Tensor
    distinct: Tensor
    tokens_asked: int

    @property
    def tokens_computed(self) -> int:
        """T: the rows that the forward computes."""
        return self.ids.shape[0]

    def halves(self) -> "tuple[Forest, Forest]":
        """Make two batches, each with half of the distinct texts, of which there must be two; `texts` stays so."""
        tokens = self._tokens()
        first = self.distinct < len(tokens) // 2
        return self._some(first, tokens), self._some(~first, tokens)

    def _some(self, wanted: Tensor, tokens: list[list[int]]) -> "Forest":
        members = wanted.nonzero().flatten()
        lists = [tokens[i] for i in self.distinct[members].tolist()]
        (forest,) = plan_forests(lists, self.tokens_asked)
        return replace(forest, texts=self.texts[members[forest.texts]])

    def _tokens(self) -> list[list[int]]:
        """The token ids of each distinct text: the rows of its path."""
        start, parent, fork = self.segments.start, self.segments.parent, self.segments.fork
        lists = []
        for row, segment in zip(
            self.final_rows, self.segments.owners(self.final_rows), strict=True
        ):
            runs = [self.ids[start[segment] : row + 1]]
            while parent[segment] >= 0:
                above = parent[segment]
                runs.append(self.ids[start[above] : start[above] + fork[segment]])
                segment = above
            lists.append(torch.cat(runs[::-1]).tolist())
        return lists


def plan_forests(
    tokens: Sequence[Sequence[int]], max_batch_tokens: int, *, share: bool = True
) -> Iterator[Forest]:
    """Cut token lists into forests of at most `max_batch_tokens` computed tokens each.

    Texts are sorted by their tokens, so that those which begin alike meet in one batch. A single text longer than the
    budget is a batch of its own. With `share=False` every text is a segment of its own: the slow twin for tests.
    """
    if not tokens:
        return
    window = _Window.sort(tokens, share=share)
    first = 0
    while first < len(window.lengths):
        branches, finals = _grow(window, first, max_batch_tokens)
        yield _pack(window, first, branches, finals)
        first += len(finals)


@dataclass(frozen=True, slots=True)
class _Window:
    """Distinct token lists in lexicographic order, packed end to end."""

    ids: Tensor  # int32, all distinct lists
    offsets: list[int]
    lengths: list[int]
    shared: list[int]  # tokens in common with the list before
    callers: list[list[int]]  # the caller's indices of each distinct list

    @staticmethod
    def sort(tokens: Sequence[Sequence[int]], *, share: bool) -> "_Window":
        """Sort and merge equal lists; big-endian bytes order like the lists, at the speed of memcmp."""
        callers: dict[bytes | int, list[int]] = {}
        keys: list[bytes] = []
        for index, ids in enumerate(tokens):
            packed = array("I", ids)
            packed.byteswap()
            key = packed.tobytes()
            keys.append(key)
            callers.setdefault(key if share else index, []).append(index)
        order = sorted(callers, key=lambda key: keys[callers[key][0]])
        sorted_keys = [keys[callers[key][0]] for key in order]
        joined = bytearray(b"".join(sorted_keys))
        little_endian = torch.frombuffer(joined, dtype=torch.uint8).view(-1, 4).flip(1)
        flat = little_endian.contiguous().view(torch.int32).flatten()
        lengths = [len(key) // 4 for key in sorted_keys]
        ends = torch.tensor(lengths).cumsum(0)
        offsets = ends - torch.tensor(lengths)
        shared = _common_prefixes(flat, offsets, lengths) if share else [0] * len(lengths)
        return _Window(flat, offsets.tolist(), lengths, shared, [callers[key] for key in order])


def _common_prefixes(ids: Tensor, offsets: Tensor, lengths: list[int]) -> list[int]:
    """How many tokens each list shares with the one before it; linear in tokens, no loop over them."""
    if len(lengths) < 2:
        return [0] * len(lengths)
    size = torch.tensor(lengths)
    limit = torch.minimum(size[:-1], size[1:])
    pair = torch.repeat_interleave(limit)
    within = _ramp(limit)
    differs = ids[offsets[:-1][pair] + within] != ids[offsets[1:][pair] + within]
    common = limit.clone().scatter_reduce_(0, pair[differs], within[differs], "amin")
    return [0, *common.tolist()]


def _ramp(lengths: Tensor) -> Tensor:
    """0 … n−1 for each n of lengths, end to end."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)


@dataclass(slots=True)
class _Branch:
    """A segment while it is built: tokens [start, end) of one list, `parent` by number, -1 for a root."""

    source: int
    start: int
    end: int
    parent: int


def _grow(
    window: _Window, first: int, max_batch_tokens: int
) -> tuple[list[_Branch], list[tuple[int, int]]]:
    """Branch off the lists from `first` on while their rows are within the budget, one list at least.

    Returns:  the branches, and of each distinct list (branch, depth in tokens) of its end.
    """
    branches: list[_Branch] = []
    finals: list[tuple[int, int]] = []
    path: list[int] = []  # branches of the list before, root first
    rows = 0
    for i in range(first, len(window.lengths)):
        length = window.lengths[i]
        depth = _climb(branches, path, window.shared[i] if i > first else 0)
        rows += length - depth
        if rows > max_batch_tokens and i > first:
            break
        if path and branches[path[-1]].end == depth:  # goes on where its prefix ended
            branches[path[-1]].source, branches[path[-1]].end = i, length
        else:
            branches.append(_Branch(i, depth, length, path[-1] if path else -1))
            path.append(len(branches) - 1)
        finals.append((path[-1], length))
    return branches, finals


def _climb(branches: list[_Branch], path: list[int], depth: int) -> int:
    """Drop the path's branches that the next list does not fork off; return the depth of its fork."""
    while path:
        top = branches[path[-1]]
        if depth > top.start and (
            depth == top.end or (depth - top.start >= MIN_SHARED and len(path) < MAX_DEPTH)
        ):
            return depth
        depth = min(depth, top.start)
        path.pop()
    return 0


def _pack(
    window: _Window, first: int, branches: list[_Branch], finals: list[tuple[int, int]]
) -> Forest:
    """Give every branch its rows: equal lengths side by side, roots first."""
    order = sorted(
        range(len(branches)),
        key=lambda b: (branches[b].parent >= 0, branches[b].end - branches[b].start, b),
    )
    lengths = torch.tensor([branches[b].end - branches[b].start for b in order])
    starts = lengths.cumsum(0) - lengths
    depths = torch.tensor([branches[b].start for b in order])
    sources = torch.tensor([window.offsets[branches[b].source] for b in order]) + depths
    ramp = _ramp(lengths)
    place = [0] * len(branches)
    for row, b in enumerate(order):
        place[b] = row
    start = starts.tolist()
    parent = [place[branches[b].parent] if branches[b].parent >= 0 else -1 for b in order]
    fork = [
        branches[b].start - branches[branches[b].parent].start if branches[b].parent >= 0 else 0
        for b in order
    ]
    last = first + len(finals)
    callers = window.callers[first:last]
    texts = [index for group in callers for index in group]
    return Forest(
        ids=window.ids[torch.repeat_interleave(sources, lengths) + ramp],
        positions=(torch.repeat_interleave(depths, lengths) + ramp).to(torch.int32),
        segments=Segments(start, lengths.tolist(), parent, fork, depths.tolist()),
        final_rows=[start[place[b]] + depth - branches[b].start - 1 for b, depth in finals],
        texts=torch.tensor(texts),
        distinct=torch.repeat_interleave(torch.tensor([len(group) for group in callers])),
        tokens_asked=sum(
            length * len(group)
            for length, group in zip(window.lengths[first:last], callers, strict=True)
        ),
    )
