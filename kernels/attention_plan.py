"""Which rows attend to which, made once a batch, in the form that the implementation at hand reads.

The PyTorch twins take dense blocks (`dense_blocks.py`), the Triton kernels small tables (`tiles.py`). A plan makes each
form when it is first asked for; a `TablePlan` is given the tables, already on the device, and serves the kernels alone.
"""

from functools import cached_property

import torch
from torch import Tensor

from lastword.errors import ConfigError
from lastword.kernels.dense_blocks import Block, Finals, Paths, final_groups, segment_blocks
from lastword.kernels.gpu.tables import final_table, query_tiles, segment_table, write_padded
from lastword.kernels.segments import Segments


class AttentionPlan:
    """The attention of one batch: its segments, its final rows, and each form of them when first asked for."""

    def __init__(self, segments: Segments, final_rows: list[int], device: torch.device) -> None:
        self.segments, self.final_rows, self.device = segments, final_rows, device
        self._tiles: dict[int, Tensor] = {}

    @cached_property
    def _paths(self) -> Paths:
        """Of both twins."""
        return Paths(self.segments)

    @cached_property
    def blocks(self) -> list[Block]:
        """For the twin of `forest_attention`."""
        return segment_blocks(self._paths, self.device)

    @cached_property
    def finals(self) -> Finals:
        """For the twin of `final_attention`."""
        return final_groups(self._paths, self.final_rows, self.device)

    @cached_property
    def num_finals(self) -> int:
        """N: query rows of `final_attention`."""
        return len(self.final_rows)

    @cached_property
    def rows_per_segment(self) -> float:
        """Rows of a segment on average: what the block sizes are chosen by."""
        return sum(self.segments.length) / max(1, len(self.segments.length))

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

    def write_tables(
        self, table: Tensor, final_table: Tensor, tiles: Tensor, tile_rows: int
    ) -> None:
        """Write the kernels' tables into tables of the same sizes or larger ones; see `TablePlan`.

        Larger ones have a segment more than the batch at least: the last, without rows, owns what is left over.
        """
        nothing = (len(table) - 1, 0)
        write_padded(table, self.table, (0, 0, -1, 0))
        write_padded(final_table, self.final_table, nothing)
        write_padded(tiles, self.tiles(tile_rows), nothing)


class TablePlan(AttentionPlan):
    """A plan by its tables, as `AttentionPlan.write_tables` fills them: what a CUDA graph may read again and again.

    Args:     table: int32 [S, 4]; final_table: int32 [N, 2]; tiles: int32 [tiles, 2] of `tile_rows` rows each.
              has_ancestors, rows_per_segment, longest_path: as `AttentionPlan` has them, or an upper bound.
    """

    def __init__(
        self,
        table: Tensor,
        final_table: Tensor,
        tiles: Tensor,
        *,
        tile_rows: int,
        has_ancestors: bool,
        rows_per_segment: float,
        longest_path: int,
    ) -> None:
        super().__init__(Segments([], [], [], [], []), [], table.device)
        self.table, self.final_table = table, final_table
        self._tiles = {tile_rows: tiles}
        self.num_finals = len(final_table)
        self.has_ancestors, self.rows_per_segment = has_ancestors, rows_per_segment
        self.longest_path = longest_path

    @cached_property
    def _paths(self) -> Paths:
        raise ConfigError(
            "attention plan: packed for the Triton kernels; got a PyTorch twin that reads it, expected a kernel."
        )

    def tiles(self, tile_rows: int) -> Tensor:
        """The tiles as they were packed.

        Raises:   ConfigError where they have other rows: the segments to cut them from are not here.
        """
        if tile_rows not in self._tiles:
            (packed,) = self._tiles
            raise ConfigError(
                f"attention plan: tiles of other rows; got {tile_rows}, expected the {packed} that were packed."
            )
        return self._tiles[tile_rows]
