"""Which rows attend to which, made once a batch, in the form that the implementation at hand reads.

The PyTorch twins take dense blocks (`sdpa_blocks.py`), the Triton kernels small tables (`tiles.py`).
"""

from functools import cached_property

import torch
from torch import Tensor

from lastword.kernels.sdpa_blocks import Block, Finals, Paths, final_groups, segment_blocks
from lastword.kernels.segments import Segments
from lastword.kernels.tiles import final_table, query_tiles, segment_table


class AttentionPlan:
    """The attention of one batch: its segments, its final rows, and each form of them when first asked for."""

    def __init__(self, segments: Segments, final_rows: list[int], device: torch.device) -> None:
        self.segments, self.final_rows, self.device = segments, final_rows, device
        self._tiles: dict[int, Tensor] = {}
        self._paths = Paths(segments)  # of both twins

    @cached_property
    def blocks(self) -> list[Block]:
        """For the twin of `forest_attention`."""
        return segment_blocks(self._paths, self.device)

    @cached_property
    def finals(self) -> Finals:
        """For the twin of `final_attention`."""
        return final_groups(self._paths, self.final_rows, self.device)

    @cached_property
    def table(self) -> Tensor:
        """The segments, for both kernels."""
        return segment_table(self.segments, self.device)

    @cached_property
    def has_ancestors(self) -> bool:
        """Whether any segment forks off another."""
        return any(parent >= 0 for parent in self.segments.parent)

    @cached_property
    def longest_path(self) -> int:
        """Keys on the longest path of a final row, at most."""
        pairs = zip(self.segments.depth, self.segments.length, strict=True)
        return max(depth + length for depth, length in pairs)

    @cached_property
    def final_table(self) -> Tensor:
        """The final rows, for the kernel of `final_attention`."""
        return final_table(self.segments, self.final_rows, self.device)

    def tiles(self, tile_rows: int) -> Tensor:
        """Tiles of at most `tile_rows` query rows, for the kernel of `forest_attention`."""
        if tile_rows not in self._tiles:
            self._tiles[tile_rows] = query_tiles(self.segments, tile_rows, self.device)
        return self._tiles[tile_rows]
