"""The forest's segments: runs of consecutive packed rows, each with at most one parent.

A segment's path is the first `fork` rows of its parent's path end, of its grandparent's, and so on up to a root,
then its own rows. Knows rows only, neither token ids nor texts nor devices.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments as Python integers on the host.

    `start[s]` first packed row, `length[s]` rows, `parent[s]` segment or -1, `fork[s]` how many of the parent's own
    rows come before this segment (0 for a root), `depth[s]` how many rows its ancestors bring in all.
    """

    start: list[int]
    length: list[int]
    parent: list[int]
    fork: list[int]
    depth: list[int]

    def owners(self, rows: list[int]) -> list[int]:
        """The segment that holds each row."""
        order = sorted(range(len(self.start)), key=self.start.__getitem__)
        starts = torch.tensor([self.start[s] for s in order])
        found = torch.searchsorted(starts, torch.tensor(rows), right=True) - 1
        return [order[i] for i in found.tolist()]
