"""Attention over a forest in PyTorch's fastest form for a GPU: one SDPA call per group of segments of equal shape.

This is a baseline for benchmarks. The CPU implementation (`kernels/cpu.py`) computes tiles of 64 query rows, which
would take hundreds of launches on a GPU.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.kernels import CpuPlan
from lastword.kernels.attention_plan import Block

Attention = Callable[[Tensor, Tensor, Tensor, CpuPlan, float], Tensor]


def eager_forest_attention(plan: CpuPlan, device: torch.device) -> Attention:
    """Return a function that computes `forest_attention` for this plan.

    The masks are made here, before the function is returned, so that making them is not timed.

    Args:
        plan: the batch's attention plan.
        device: device of the masks.
    """
    blocks = [(block, _mask(block, device)) for block in _join_blocks(plan.blocks)]

    def attend(q: Tensor, k: Tensor, v: Tensor, _: CpuPlan, scale: float) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for block, mask in blocks:
            parts = ((q, block.rows), (k, block.path), (v, block.path))
            q_b, k_b, v_b = (
                x[rows].view(block.count, -1, *x.shape[1:]).transpose(1, 2) for x, rows in parts
            )
            attended = F.scaled_dot_product_attention(
                q_b, k_b, v_b, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )
            out[block.rows] = attended.transpose(1, 2).flatten(0, 1)
        return out.flatten(1)

    return attend


def _mask(block: Block, device: torch.device) -> Tensor | None:
    """Return the mask [own, above + own], True where a row attends to a key; None if there are no ancestors."""
    if block.above == 0:
        return None
    return torch.ones(block.own, block.above + block.own, dtype=torch.bool, device=device).tril(
        block.above
    )


def _join_blocks(blocks: Iterable[Block]) -> list[Block]:
    """Join adjacent segments of equal length, which the plan keeps separate in order to compute them tile by tile."""
    joined: list[Block] = []
    for block in blocks:
        last = joined[-1] if joined else None
        if (
            last is not None
            and isinstance(last.rows, slice)
            and isinstance(block.rows, slice)
            and last.own == block.own
            and last.rows.stop == block.rows.start
        ):
            rows = slice(last.rows.start, block.rows.stop)
            joined[-1] = Block(last.count + block.count, block.own, 0, rows, rows)
        else:
            joined.append(block)
    return joined
