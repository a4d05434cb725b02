"""Attention of the last layer: one query row per text, that of its last token, attends to the text's whole path.

There is one program per text and KV head. The G query heads of a KV head are the rows of one tile, so each key and
value is read once. If there are too few texts to fill the device, several programs share the keys of a path (each
takes one split), and a second kernel joins their results.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastword.kernels.attention_plan import KernelTables
from lastword.kernels.gpu.block_sizes import final_blocks, num_splits
from lastword.kernels.gpu.forest_attention import online_softmax
from lastword.kernels.gpu.launch import launch

# Least number of rows per tile that tensor cores accept. If G is smaller, only G of the rows hold query heads.
_ROWS = 16


@triton.jit(do_not_specialize=["N", "keys_per_split"])
def _final_attention_kernel(
    q_ptr,  # [N, H, D]
    k_ptr,  # [T, KH, D]
    v_ptr,  # [T, KH, D]
    out_ptr,  # [N, H, D]; if SPLIT, fp32 [splits, N, H, D] of sums not yet divided by the total weight
    peak_ptr,  # if SPLIT, fp32 [splits, N, H]: largest logit, times log2(e)
    total_ptr,  # if SPLIT, fp32 [splits, N, H]: sum of the softmax weights
    finals_ptr,  # int32 [N, 2]: segment, number of keys in it
    segments_ptr,  # int32 [S, 4]: start, length, parent, fork
    scale,  # softmax scale · log2(e)
    N,
    keys_per_split,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    KH: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Attend to the path, walking from the last token's segment up to the root; a split takes keys [low, high)."""
    text = (tl.program_id(0) // KH).to(tl.int64)
    head = tl.program_id(0) % KH
    split = tl.program_id(1)
    low = split * keys_per_split
    high = low + keys_per_split

    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    key = tl.arange(0, BLOCK_N)
    q_head = head * G + g
    mask = (g < G)[:, None] & (d < D)[None, :]
    q_at = q_ptr + text * Q_STRIDE + (q_head * D)[:, None] + d[None, :]
    q = tl.load(q_at, mask=mask, other=0.0)

    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    segment = tl.load(finals_ptr + text * 2)
    keys = tl.load(finals_ptr + text * 2 + 1)
    passed = 0  # keys of the path walked so far
    while segment >= 0:
        start = tl.load(segments_ptr + segment * 4).to(tl.int64)
        # The segment's keys lie at [passed, passed + keys) of the walk; this split takes [begin, end) of them.
        begin = tl.maximum(low - passed, 0)
        end = tl.minimum(high - passed, keys) if SPLIT else keys
        for first in range(begin, end, BLOCK_N):
            at = first + key
            inside = at < end
            row = start + at
            k_at = k_ptr + (row * K_STRIDE + head * D)[None, :] + d[:, None]
            k = tl.load(k_at, mask=inside[None, :] & (d < D)[:, None], other=0.0)
            s = tl.dot(q, k, input_precision="ieee")
            s = tl.where(inside[None, :], s, float("-inf"))
            v_at = v_ptr + (row * V_STRIDE + head * D)[:, None] + d[None, :]
            v = tl.load(v_at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
            acc, peak, total = online_softmax(acc, peak, total, s, scale, v)
        passed += keys
        keys = tl.load(segments_ptr + segment * 4 + 3)
        segment = tl.load(segments_ptr + segment * 4 + 2)

    if SPLIT:
        at = (split * N + text) * (KH * G) + q_head
        tl.store(peak_ptr + at, peak, mask=g < G)
        tl.store(total_ptr + at, total, mask=g < G)
        tl.store(out_ptr + (at * D)[:, None] + d[None, :], acc, mask=mask)
    else:
        out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
        out_at = out_ptr + text * (KH * G * D) + (q_head * D)[:, None] + d[None, :]
        tl.store(out_at, out, mask=mask)


@triton.jit(do_not_specialize=["splits", "rows"])
def _join_kernel(
    parts_ptr,  # fp32 [splits, N·H, D]
    peak_ptr,  # fp32 [splits, N·H]
    total_ptr,  # fp32 [splits, N·H]
    out_ptr,  # [N·H, D]
    splits,
    rows,  # N·H
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = (Σ 2^(peak_s − peak) · part_s) / (Σ 2^(peak_s − peak) · total_s) over splits s; peak = max peak_s.

    A split without keys has peak_s = −inf, and so the weight 0.
    """
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    peak = float("-inf")
    total = 0.0
    for split in range(splits):
        at = split * rows + row
        part_peak = tl.load(peak_ptr + at)
        # The first split always has keys, so the running peak is finite from the first iteration on.
        new_peak = tl.maximum(peak, part_peak)
        shrink = tl.exp2(peak - new_peak)
        weight = tl.exp2(part_peak - new_peak)
        part = tl.load(parts_ptr + at * D + d, mask=d < D, other=0.0)
        acc = acc * shrink + part * weight
        total = total * shrink + tl.load(total_ptr + at) * weight
        peak = new_peak
    out = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * D + d, out, mask=d < D)


def final_attention(q: Tensor, k: Tensor, v: Tensor, plan: KernelTables, scale: float) -> Tensor:
    """Launch `_final_attention_kernel` on q [N, H, D], k and v [T, KH, D]; if paths are split, also `_join_kernel`."""
    (N, H, D), KH = q.shape, k.shape[1]
    out = torch.empty(N, H * D, dtype=q.dtype, device=q.device)
    if not N:
        return out
    splits, keys_per_split = num_splits(q.device, programs=N * KH, keys=plan.longest_path)
    block_d = max(triton.next_power_of_2(D), 16)
    parts = peak = total = out
    if splits > 1:
        parts = torch.empty(splits, N, H, D, dtype=torch.float32, device=q.device)
        peak = torch.empty(splits, N, H, dtype=torch.float32, device=q.device)
        total = torch.empty_like(peak)
    launch(
        _final_attention_kernel, (N * KH, splits),
        q, k, v, parts, peak, total, plan.final_table, plan.segment_table,
        scale * math.log2(math.e), N, keys_per_split,
        Q_STRIDE=q.stride(0), K_STRIDE=k.stride(0), V_STRIDE=v.stride(0),
        KH=KH, G=H // KH, D=D, BLOCK_D=block_d,
        BLOCK_G=max(triton.next_power_of_2(H // KH), _ROWS), SPLIT=splits > 1, **final_blocks(q.dtype),
    )  # fmt: skip
    if splits > 1:
        launch(
            _join_kernel, (N * H,), parts, peak, total, out, splits, N * H,
            D=D, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    return out
