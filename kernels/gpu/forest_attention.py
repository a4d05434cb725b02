"""Causal grouped-query attention over segments and their ancestors: one program for each query tile and KV head.

A tile has BLOCK_M = tokens · G rows: for each of its tokens, the G query heads of one KV head. So keys and values are
loaded once for all G heads, and a short segment fills more of a tile. Tiles with the most keys run first.
"""

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastword.kernels.attention_plan import KernelTables
from lastword.kernels.gpu.block_sizes import architecture, attention_blocks, tile_tokens
from lastword.kernels.gpu.launch import launch


@triton.jit
def online_softmax(
    acc,  # [M, D] fp32, weighted sum of values
    peak,  # [M] fp32, largest logit so far, times log2(e)
    total,  # [M] fp32, sum of the softmax weights
    s,  # [M, N] fp32 products q·k, -inf where masked
    scale,  # softmax scale · log2(e); > 0, so that the largest product gives the largest logit
    v,  # [N, D]
):
    """Add one block of keys to the running softmax: sums in fp32, softmax weights rounded to the dtype of v.

    The scale is a factor within the exponent, where it is fused with the subtraction, rather than one of every product.
    """
    new_peak = tl.maximum(peak, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, new_peak, total


@triton.jit
def _attend(
    acc,  # [BLOCK_M, BLOCK_D], as in `online_softmax`
    peak,  # [BLOCK_M], likewise
    total,  # [BLOCK_M], likewise
    q,  # [BLOCK_M, BLOCK_D]
    k_ptr,  # first key row of the segment, at this KV head; v_ptr likewise
    v_ptr,
    low,  # keys [low, high) of the segment
    high,
    visible,  # [BLOCK_M]: row i attends to the segment's keys below visible[i]; used if MASKED
    scale,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    TIGHT: tl.constexpr,
):
    """Attend to the keys [low, high) of one segment, block by block; logits in fp32."""
    key = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    at = (low + key).to(tl.int64)
    k_at = k_ptr + at[None, :] * K_STRIDE + d[:, None]  # [BLOCK_D, BLOCK_N]
    v_at = v_ptr + at[:, None] * V_STRIDE + d[None, :]  # [BLOCK_N, BLOCK_D]
    for first in range(low, high, BLOCK_N):
        if MASKED:
            k = tl.load(k_at, mask=(first + key < high)[None, :] & (d < D)[:, None], other=0.0)
            v = tl.load(v_at, mask=(first + key < high)[:, None] & (d < D)[None, :], other=0.0)
        elif D < BLOCK_D:
            k = tl.load(k_at, mask=(d < D)[:, None], other=0.0)
            v = tl.load(v_at, mask=(d < D)[None, :], other=0.0)
        else:
            k = tl.load(k_at)
            v = tl.load(v_at)
        s = tl.dot(q, k, input_precision="ieee")
        if TIGHT:
            s = s * scale
        if MASKED:
            s = tl.where((first + key)[None, :] < visible[:, None], s, float("-inf"))
        acc, peak, total = online_softmax(acc, peak, total, s, 1.0 if TIGHT else scale, v)
        k_at += BLOCK_N * K_STRIDE
        v_at += BLOCK_N * V_STRIDE
    return acc, peak, total


@triton.jit
def _forest_attention_kernel(
    q_ptr,  # [T, H, D]
    k_ptr,  # [T, KH, D]
    v_ptr,  # [T, KH, D]
    out_ptr,  # [T, H, D], contiguous
    tiles_ptr,  # int32 [tiles, 2]: segment, first row in it
    segments_ptr,  # int32 [S, 4]: start, length, parent, fork
    scale,  # softmax scale · log2(e)
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    KH: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TREE: tl.constexpr,  # whether any segment has ancestors
    TIGHT: tl.constexpr,  # whether to spare registers: scale all products, and mask all keys of ancestors
):
    """out = softmax(scale · q·kᵀ) · v over the keys on each row's path, rounded once at the store."""
    TOKENS: tl.constexpr = BLOCK_M // G
    tile = tl.program_id(0) // KH
    head = tl.program_id(0) % KH
    segment = tl.load(tiles_ptr + tile * 2)
    first = tl.load(tiles_ptr + tile * 2 + 1)
    start = tl.load(segments_ptr + segment * 4).to(tl.int64)
    length = tl.load(segments_ptr + segment * 4 + 1)

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = first + m // G
    mask = (m < TOKENS * G) & (token < length)
    mask = mask[:, None] & (d < D)[None, :]
    row = start + token
    q_head = head * G + m % G
    q_at = q_ptr + (row * Q_STRIDE + q_head * D)[:, None] + d[None, :]
    q = tl.load(q_at, mask=mask, other=0.0)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    k_ptr += head * D
    v_ptr += head * D
    diagonal = first // BLOCK_N * BLOCK_N
    acc, peak, total = _attend(
        acc, peak, total, q, k_ptr + start * K_STRIDE, v_ptr + start * V_STRIDE,
        0, diagonal, token + 1, scale,
        K_STRIDE, V_STRIDE, D, BLOCK_D, BLOCK_N, MASKED=False, TIGHT=TIGHT,
    )  # fmt: skip
    acc, peak, total = _attend(
        acc, peak, total, q, k_ptr + start * K_STRIDE, v_ptr + start * V_STRIDE,
        diagonal, tl.minimum(first + TOKENS, length), token + 1, scale,
        K_STRIDE, V_STRIDE, D, BLOCK_D, BLOCK_N, MASKED=True, TIGHT=TIGHT,
    )  # fmt: skip
    if TREE:  # comes last: if it came first, ptxas would make every wgmma wait for the previous one
        ancestor = tl.load(segments_ptr + segment * 4 + 2)
        fork = tl.load(segments_ptr + segment * 4 + 3)
        while ancestor >= 0:
            above = tl.load(segments_ptr + ancestor * 4).to(tl.int64)
            visible = tl.full([BLOCK_M], fork, tl.int32)
            whole = 0
            if not TIGHT:
                whole = fork // BLOCK_N * BLOCK_N
                acc, peak, total = _attend(
                    acc, peak, total, q, k_ptr + above * K_STRIDE, v_ptr + above * V_STRIDE,
                    0, whole, visible, scale,
                    K_STRIDE, V_STRIDE, D, BLOCK_D, BLOCK_N, MASKED=False, TIGHT=TIGHT,
                )  # fmt: skip
            acc, peak, total = _attend(
                acc, peak, total, q, k_ptr + above * K_STRIDE, v_ptr + above * V_STRIDE,
                whole, fork, visible, scale,
                K_STRIDE, V_STRIDE, D, BLOCK_D, BLOCK_N, MASKED=True, TIGHT=TIGHT,
            )  # fmt: skip
            fork = tl.load(segments_ptr + ancestor * 4 + 3)
            ancestor = tl.load(segments_ptr + ancestor * 4 + 2)

    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    out_at = out_ptr + (row * (KH * G * D) + q_head * D)[:, None] + d[None, :]
    tl.store(out_at, out, mask=mask)


def forest_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: KernelTables,
    scale: float,
    changes: Mapping[str, int] | None = None,
) -> Tensor:
    """Launch `_forest_attention_kernel` on q [T, H, D], k and v [T, KH, D], the heads of a row contiguous.

    `changes` replaces launch arguments, for comparisons (`lastword bench kernels`).
    """
    (T, H, D), KH = q.shape, k.shape[1]
    G = H // KH
    out = torch.empty(T, H * D, dtype=q.dtype, device=q.device)
    if not T:
        return out
    rows = plan.rows_per_segment * G
    on = architecture(q.device)
    few_registers = on.startswith("gfx") or q.dtype == torch.float32  # the other form would spill
    blocks = attention_blocks(q.dtype, on, tree=plan.has_ancestors, rows=rows)
    tiles = plan.tiles_of(tile_tokens(blocks, G))
    tight = plan.has_ancestors and few_registers
    form = {**blocks, "TREE": plan.has_ancestors, "TIGHT": tight, **(changes or {})}
    launch(
        _forest_attention_kernel, (len(tiles) * KH,),
        q, k, v, out, tiles, plan.segment_table, scale * math.log2(math.e),
        Q_STRIDE=q.stride(0), K_STRIDE=k.stride(0), V_STRIDE=v.stride(0),
        KH=KH, G=G, D=D, BLOCK_D=max(triton.next_power_of_2(D), 16), **form,
    )  # fmt: skip
    return out
