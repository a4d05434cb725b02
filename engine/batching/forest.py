"""Pack token lists into forests: prefix trees in which the texts of a batch share the rows of a common beginning.

A packed row is one token. A forest is a set of segments; a segment is a run of consecutive packed rows. A segment forks
off its parent after the parent's first `fork` rows. The path of a row consists of its segment's ancestors, each up to
the fork, and its own segment up to the row. Attention is causal, so, apart from rounding, each row has the value that
it would have if its text were alone in the batch.

A text may name a prompt, whose keys and values the model keeps between batches. The tokens with which both the text and
its prompt begin are not packed: the text's first segment forks off the prompt, which is a segment without packed rows.
This module knows token ids, but no texts, weights or devices.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lastword.kernels import Segments
from lastword.kernels.caller_settings import count_up, integers

# Fork inside a segment only after at least this many of its tokens; sharing fewer would cost more than it saves.
MIN_SHARED = 8
# Maximum number of packed segments on a path. Where it would have more, the shared rows are packed again instead.
MAX_DEPTH = 8


_Prompted = tuple[list[int], tuple[int, ...]]  # a text's token ids and those of its prompt


@dataclass(frozen=True, slots=True)
class Forest:
    """One batch of N texts, N' of them distinct, in T packed rows and S segments.

    Args:
        ids: [T], int32, the token id of each packed row.
        positions: [T], int32, the RoPE position of each packed row.
        prompts: the token ids of the cached prompts that texts fork off; these prompts are the first segments.
        segments: the S segments; their rows are numbered from the first row of the first prompt.
        final_rows: the row of each distinct text's last token: N' numbers, counted from the first packed row.
        texts: [N], int64, the caller's index of each text.
        distinct: [N], int64, the index of each text among the N' distinct texts.
        tokens_requested: number of tokens of all N texts, before sharing.
    """

    ids: Tensor
    positions: Tensor
    prompts: tuple[tuple[int, ...], ...]
    segments: Segments
    final_rows: list[int]
    texts: Tensor
    distinct: Tensor
    tokens_requested: int

    @property
    def tokens_computed(self) -> int:
        """T, the number of rows that the forward computes."""
        return self.ids.shape[0]

    @property
    def tokens_cached(self) -> int:
        """Number of rows whose keys and values come from cached prompts."""
        return self.segments.cached

    def halves(self) -> "tuple[Forest, Forest]":
        """Split into two batches, each with half of the distinct texts; there must be two or more."""
        tokens = self._tokens()
        first = self.distinct < len(tokens) // 2
        return self._subset(first, tokens), self._subset(~first, tokens)

    def _subset(self, wanted: Tensor, tokens: "list[_Prompted]") -> "Forest":
        members = wanted.nonzero().flatten()
        lists = [tokens[i] for i in self.distinct[members].tolist()]
        (forest,) = plan_forests(
            [ids for ids, _ in lists],
            self.tokens_requested,
            prompts=[prompt for _, prompt in lists],
        )
        return replace(forest, texts=self.texts[members[forest.texts]])

    def _tokens(self) -> "list[_Prompted]":
        """Return each distinct text's token ids, read from the rows of its path, and the token ids of its prompt."""
        start, parent, fork = self.segments.start, self.segments.parent, self.segments.fork
        cached = [token for prompt in self.prompts for token in prompt]
        ids = torch.cat([torch.tensor(cached, dtype=torch.int32, device=self.ids.device), self.ids])
        rows = [len(cached) + row for row in self.final_rows]
        lists = []
        for row, segment in zip(rows, self.segments.owners(rows), strict=True):
            runs = [ids[start[segment] : row + 1]]
            while parent[segment] >= 0:
                above = parent[segment]
                runs.append(ids[start[above] : start[above] + fork[segment]])
                segment = above
            prompt = self.prompts[segment] if segment < len(self.prompts) else ()
            lists.append((torch.cat(runs[::-1]).tolist(), prompt))
        return lists


def plan_forests(
    tokens: Sequence[Sequence[int]],
    max_batch_tokens: int,
    *,
    prompts: Sequence[Sequence[int]] = (),
    share: bool = True,
) -> Iterator[Forest]:
    """Split token lists into forests of at most `max_batch_tokens` computed tokens each.

    Texts are sorted by their token ids, so that texts with the same beginning are in the same batch.

    Args:
        tokens: the token ids of each text.
        max_batch_tokens: maximum packed rows of a forest; a single text longer than this is a batch of its own.
        prompts: the token ids of each text's prompt, () for a text without one; by default no text has a prompt. A
            text uses its prompt only if both begin with the same `MIN_SHARED` tokens or more. A text's last token is
            always packed.
        share: whether texts share rows; False makes each text a segment of its own, as a reference for tests.

    Yields:
        Forests in the sorted order of their texts.
    """
    if not tokens:
        return
    group = _SortedGroup.sort(tokens, prompts, share=share)
    first = 0
    while first < len(group.lengths):
        batch = _grow(group, first, max_batch_tokens)
        yield _pack(group, first, batch)
        first += len(batch.finals)


@dataclass(frozen=True, slots=True)
class _SortedGroup:
    """The distinct token lists of a group of texts in lexicographic order, packed end to end."""

    ids: Tensor  # int32, all distinct lists
    offsets: list[int]
    lengths: list[int]
    shared: list[int]  # length of the prefix shared with the previous list
    callers: list[list[int]]  # the caller's indices of each distinct list
    prompts: list[tuple[int, ...]]  # the prompt of each distinct list, or ()
    cached: list[int]  # length of the prefix shared with the prompt

    @staticmethod
    def sort(
        tokens: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], *, share: bool
    ) -> "_SortedGroup":
        """Sort the lists (as big-endian bytes: the same order, but faster); with `share`, merge equal ones."""
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
        sizes = integers(lengths)
        offsets = sizes.cumsum(0) - sizes
        shared = _common_prefixes(flat, offsets, lengths) if share else [0] * len(lengths)
        by_list = [callers[key] for key in order]
        none: tuple[tuple[int, ...], int] = (), 0
        used = any(prompts)
        of_list = [used_prompt(tokens[i], prompts[i]) if used else none for i, *_ in by_list]
        own, cached = [prompt for prompt, _ in of_list], [count for _, count in of_list]
        return _SortedGroup(flat, offsets.tolist(), lengths, shared, by_list, own, cached)


def used_prompt(ids: Sequence[int], prompt: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Return the prompt and how many of its tokens the text begins with; ((), 0) if fewer than `MIN_SHARED`."""
    most = min(len(prompt), len(ids) - 1)
    if list(ids[:most]) == list(prompt[:most]):
        common = most
    else:
        pairs = zip(ids, prompt, strict=False)
        common = next(place for place, (a, b) in enumerate(pairs) if a != b)
    return (tuple(prompt), common) if common >= MIN_SHARED else ((), 0)


def _common_prefixes(ids: Tensor, offsets: Tensor, lengths: list[int]) -> list[int]:
    """Count the leading tokens that each list shares with the previous one, in linear time, without a Python loop."""
    if len(lengths) < 2:
        return [0] * len(lengths)
    size = integers(lengths)
    limit = torch.minimum(size[:-1], size[1:])
    pair = torch.repeat_interleave(limit)
    within = _ramp(limit)
    differs = ids[offsets[:-1][pair] + within] != ids[offsets[1:][pair] + within]
    common = limit.clone().scatter_reduce_(0, pair[differs], within[differs], "amin")
    return [0, *common.tolist()]


def _ramp(lengths: Tensor) -> Tensor:
    """Concatenate the ranges 0 … n−1 for each n of `lengths`."""
    starts = lengths.cumsum(0) - lengths
    return count_up(0, int(lengths.sum())) - torch.repeat_interleave(starts, lengths)


@dataclass(slots=True)
class _Branch:
    """A segment being built: tokens [start, end) of the list with index `source`.

    `parent` is the index of a branch, or -1. Without a parent, the branch forks off the prompt with index
    `prompt`; -1 for none.
    """

    source: int
    start: int
    end: int
    parent: int
    prompt: int


@dataclass(frozen=True, slots=True)
class _Batch:
    """The branches of one batch, its prompts, and for each list (the branch in which it ends, its length in tokens)."""

    branches: list[_Branch]
    prompts: list[tuple[int, ...]]
    finals: list[tuple[int, int]]


def _grow(group: _SortedGroup, first: int, max_batch_tokens: int) -> _Batch:
    """Build the branches of one batch from list `first` and as many of the following lists as fit into the budget."""
    branches: list[_Branch] = []
    finals: list[tuple[int, int]] = []
    prompts: dict[tuple[int, ...], int] = {(): -1}
    path: list[int] = []  # branches of the previous list, root first
    rows = 0
    for i in range(first, len(group.lengths)):
        length, prompt = group.lengths[i], group.prompts[i]
        alike = i > first and prompt == group.prompts[i - 1]
        depth = _climb(branches, path, group.shared[i] if alike else 0, group.cached[i])
        rows += length - depth
        if rows > max_batch_tokens and i > first:
            break
        if path and branches[path[-1]].end == depth:  # this list extends the previous one
            branches[path[-1]].source, branches[path[-1]].end = i, length
        else:
            number = prompts.setdefault(prompt, len(prompts) - 1)
            branches.append(_Branch(i, depth, length, path[-1] if path else -1, number))
            path.append(len(branches) - 1)
        finals.append((path[-1], length))
    return _Batch(branches, list(prompts)[1:], finals)


def _climb(branches: list[_Branch], path: list[int], depth: int, cached: int) -> int:
    """Remove from the path the branches from which the next list does not descend.

    Args:
        branches: the branches of the batch.
        path: the branches of the previous list, root first; changed in place.
        depth: number of tokens that the next list shares with the previous one.
        cached: number of tokens that the next list shares with its prompt.

    Returns:
        The depth in tokens at which the next list forks off the path's last branch, or off its prompt if the path is
        now empty; 0 if there is neither.
    """
    while path and depth > cached:
        top = branches[path[-1]]
        if depth > top.start and (
            depth == top.end or (depth - top.start >= MIN_SHARED and len(path) < MAX_DEPTH)
        ):
            return depth
        depth = min(depth, top.start)
        path.pop()
    path.clear()
    return cached


def _pack(group: _SortedGroup, first: int, batch: _Batch) -> Forest:
    """Assign rows to the branches and make the forest: roots first, then other branches, each from short to long."""
    branches, prompts = batch.branches, batch.prompts
    order = sorted(
        range(len(branches)),
        key=lambda b: (branches[b].parent >= 0, branches[b].end - branches[b].start, b),
    )
    lengths = integers([branches[b].end - branches[b].start for b in order])
    starts = lengths.cumsum(0) - lengths
    depths = integers([branches[b].start for b in order])
    sources = integers([group.offsets[branches[b].source] for b in order]) + depths
    ramp = _ramp(lengths)
    first_row = dict(zip(order, starts.tolist(), strict=True))
    last = first + len(batch.finals)
    callers = group.callers[first:last]
    texts = [index for indices in callers for index in indices]
    return Forest(
        ids=group.ids[torch.repeat_interleave(sources, lengths) + ramp],
        positions=(torch.repeat_interleave(depths, lengths) + ramp).to(torch.int32),
        prompts=tuple(prompts),
        segments=_segments(batch, order, starts.tolist()),
        final_rows=[first_row[b] + depth - branches[b].start - 1 for b, depth in batch.finals],
        texts=integers(texts),
        distinct=torch.repeat_interleave(integers([len(indices) for indices in callers])),
        tokens_requested=sum(
            length * len(indices)
            for length, indices in zip(group.lengths[first:last], callers, strict=True)
        ),
    )


def _segments(batch: _Batch, order: list[int], starts: list[int]) -> Segments:
    """Make the segments: the prompts, then the branches in `order`, whose packed rows begin at `starts`."""
    branches, sizes = batch.branches, [len(prompt) for prompt in batch.prompts]
    cached = sum(sizes)
    place = {b: len(sizes) + number for number, b in enumerate(order)} | {-1: -1}
    segments = Segments(
        start=[sum(sizes[:number]) for number in range(len(sizes))],
        length=sizes,
        parent=[-1] * len(sizes),
        fork=[0] * len(sizes),
        depth=[0] * len(sizes),
        cached=cached,
    )
    for b, start in zip(order, starts, strict=True):
        branch = branches[b]
        above = branches[branch.parent].start if branch.parent >= 0 else 0
        segments.start.append(cached + start)
        segments.length.append(branch.end - branch.start)
        segments.parent.append(branch.prompt if branch.parent < 0 else place[branch.parent])
        segments.fork.append(branch.start - above)
        segments.depth.append(branch.start)
    return segments
