"""The forest's segments as the Triton kernels read them: small int32 tables on the device, made once a batch.

Knows rows only. Every table starts on 16 bytes, so that no batch asks for another compile. A table may be longer than
its batch needs: its last segment then has no rows, and the tiles and texts left over are of that segment.
"""

import torch
from torch import Tensor

from lastword.kernels.segments import Segments


def segment_table(segments: Segments, device: torch.device) -> Tensor:
    """Tabulate the segments: int32 [S, 4] of (start, length, parent, fork)."""
    columns = [segments.start, segments.length, segments.parent, segments.fork]
    return _to(torch.tensor(columns, dtype=torch.int32).T, device)


def query_tiles(segments: Segments, tile_rows: int, device: torch.device) -> Tensor:
    """Cut the segments into tiles of query rows: int32 [tiles, 2] of (segment, first row in it), most keys first.

    The longest tiles start first, so that the last ones to finish are short.
    """
    length = torch.tensor(segments.length)
    counts = (length + tile_rows - 1) // tile_rows
    segment = torch.repeat_interleave(counts)
    first = (torch.arange(len(segment)) - (counts.cumsum(0) - counts)[segment]) * tile_rows
    keys = torch.tensor(segments.depth)[segment] + (first + tile_rows).minimum(length[segment])
    order = keys.argsort(descending=True, stable=True)
    tiles = torch.stack([segment, first], dim=1)[order].to(torch.int32)
    return _to(tiles, device)


def final_table(segments: Segments, final_rows: list[int], device: torch.device) -> Tensor:
    """Give each text's segment and own keys in it, up to its final row: int32 [N, 2]."""
    segment = torch.tensor(segments.owners(final_rows))
    own = torch.tensor(final_rows) - torch.tensor(segments.start)[segment] + 1
    return _to(torch.stack([segment, own], dim=1).to(torch.int32), device)


def write_padded(table: Tensor, rows: Tensor, filler: tuple[int, ...]) -> None:
    """Write rows [n, columns] at the beginning of a table, and the filler into all that is left."""
    table[: len(rows)] = rows
    table[len(rows) :] = torch.tensor(filler, dtype=table.dtype)


def _to(table: Tensor, device: torch.device) -> Tensor:
    return table.contiguous().to(device, non_blocking=True)
