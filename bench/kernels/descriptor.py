"""A candidate kernel for attention without ancestors, with tensor descriptors and warp specialisation.

One program computes a tile of one query head. One warp group copies keys and values into shared memory, ahead of two
warp groups that compute 64 query rows each. Triton's compiler for sm_90 specialises warps in this way only with four
warps, one key loop without a branch, and descriptors that are created in the kernel: if descriptors are passed in, it
halves a tile's rows but not the block that is copied. No GPU has run this kernel yet. `lastword bench kernels --beside
descriptor` checks this kernel, and times it and `kernels/gpu/forest_attention.py`.
"""

import math
from contextvars import copy_context

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastword.kernels import KernelTables, Segments
from lastword.kernels.gpu.block_sizes import BlockSizes, architecture
from lastword.kernels.gpu.forest_attention import online_softmax
from lastword.kernels.gpu.launch import launch

BLOCKS = {
    "sm_90": BlockSizes(128, 128, 4, 2, "compiled 2026-11-23"),
    "sm_100": BlockSizes(128, 64, 8, 3, "compiled 2026-11-23"),
    "interpreter": BlockSizes(64, 32, 1, 1, "small, for tests"),
}
_ALIGNMENT = 16  # bytes, required of a descriptor's base and of its rows


@triton.jit
def _forest_attention_descriptor_kernel(
    q_ptr,  # [T, H, D]
    k_ptr,  # [T, KH, D]
    v_ptr,  # [T, KH, D]
    out_ptr,  # [T, H, D], contiguous
    tiles_ptr,  # int32 [tiles, 2]: segment, first row in it
    segments_ptr,  # int32 [S, 4]: start, length, and two columns for forks that are not read
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
):
    """out = softmax(scale · q·kᵀ) · v over the segment's keys up to each row, rounded once at the store."""
    tile = tl.program_id(0) // (KH * G)
    head = tl.program_id(0) % (KH * G)
    segment = tl.load(tiles_ptr + tile * 2)
    first = tl.load(tiles_ptr + tile * 2 + 1)
    start = tl.load(segments_ptr + segment * 4)
    length = tl.load(segments_ptr + segment * 4 + 1)
    end = tl.minimum(first + BLOCK_M, length)

    # The descriptors end at the tile's last key: later rows, which belong to other segments, are read as zeros.
    at = start.to(tl.int64)
    kv = head // G * D
    k_rows = tl.make_tensor_descriptor(
        k_ptr + at * K_STRIDE + kv, [end, D], [K_STRIDE, 1], [BLOCK_N, BLOCK_D]
    )
    v_rows = tl.make_tensor_descriptor(
        v_ptr + at * V_STRIDE + kv, [end, D], [V_STRIDE, 1], [BLOCK_N, BLOCK_D]
    )
    # This descriptor starts at row 0 of q. Triton's compiler shifts every use of the row offset by half a tile, so the
    # offset may be used only in this load, and not in the descriptor.
    q_rows = tl.make_tensor_descriptor(
        q_ptr + head * D, [start + end, D], [Q_STRIDE, 1], [BLOCK_M, BLOCK_D]
    )
    q = q_rows.load([start + first, 0])

    token = first + tl.arange(0, BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for low in tl.range(0, end, BLOCK_N, warp_specialize=True):
        k = k_rows.load([low, 0])
        s = tl.dot(q, k.T, input_precision="ieee")
        s = tl.where((low + key)[None, :] <= token[:, None], s, float("-inf"))
        v = v_rows.load([low, 0])
        acc, peak, total = online_softmax(acc, peak, total, s, scale, v)

    # A descriptor's store has no mask, and later rows belong to other segments, so this store uses pointers.
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    d = tl.arange(0, BLOCK_D)
    out_at = out_ptr + ((at + token) * (KH * G * D) + head * D)[:, None] + d[None, :]
    tl.store(out_at, out, mask=(token < length)[:, None] & (d < D)[None, :])


def descriptor_blocks(dtype: torch.dtype, architecture: str) -> BlockSizes | None:
    """Return the candidate's block sizes; None if it does not run on this architecture or in this dtype."""
    if dtype == torch.float32 and architecture != "interpreter":
        return None
    return BLOCKS.get(architecture)


def _blocks(q: Tensor) -> BlockSizes:
    blocks = descriptor_blocks(q.dtype, architecture(q.device))
    assert blocks is not None, "descriptors do not fit here"
    return blocks


def descriptors_fit(q: Tensor, k: Tensor, v: Tensor, *, tree: bool) -> bool:
    """Return whether the kernel accepts these inputs.

    The kernel needs block sizes for the inputs' device and dtype, segments without ancestors, and rows that are aligned
    to 16 bytes.

    Args:
        q: queries [T, H, D].
        k: keys [T, KH, D].
        v: values [T, KH, D].
        tree: whether any segment has ancestors.
    """
    if tree or descriptor_blocks(q.dtype, architecture(q.device)) is None:
        return False
    head = q.shape[2] * q.element_size()
    return head % _ALIGNMENT == 0 and all(
        x.data_ptr() % _ALIGNMENT == 0 and x.stride(0) * x.element_size() % _ALIGNMENT == 0
        for x in (q, k, v)
    )


def descriptor_tables(q: Tensor, segments: Segments, final_rows: list[int]) -> KernelTables:
    """Make the attention tables for tiles of one query head each; a tile of `forest_attention` has G query heads."""
    return KernelTables.of(segments, final_rows, q.device, tile_rows=_blocks(q).BLOCK_M)


def forest_attention_descriptor(
    q: Tensor, k: Tensor, v: Tensor, tables: KernelTables, scale: float
) -> Tensor:
    """Launch `_forest_attention_descriptor_kernel`.

    Args:
        q: queries [T, H, D].
        k: keys [T, KH, D].
        v: values [T, KH, D]; `descriptors_fit` must be True for q, k and v.
        tables: from `descriptor_tables`.
        scale: softmax scale.

    Returns:
        [T, H · D] in the dtype of q.

    Numerics:
        Computes softmax and sums in fp32, rounds the softmax weights to the dtype of v before the sum, and rounds the
        result once, at the store.
    """
    (T, H, D), KH = q.shape, k.shape[1]
    out = torch.empty(T, H * D, dtype=q.dtype, device=q.device)
    blocks = _blocks(q)
    if not T:
        return out
    tiles = tables.tiles_of(blocks.BLOCK_M)

    def run() -> None:
        triton.set_allocator(_scratch)
        launch(
            _forest_attention_descriptor_kernel, (len(tiles) * H,),
            q, k, v, out, tiles, tables.segment_table, scale * math.log2(math.e),
            Q_STRIDE=q.stride(0), K_STRIDE=k.stride(0), V_STRIDE=v.stride(0),
            KH=KH, G=H // KH, D=D, BLOCK_D=max(triton.next_power_of_2(D), 16),
            **blocks.arguments(),
        )  # fmt: skip

    copy_context().run(run)  # in a copy of the context, so that the caller's allocator stays set
    return out


def _scratch(size: int, *_: object) -> Tensor:  # alignment, 128 bytes; stream, the current one
    """Allocate memory for the descriptors of one launch; PyTorch reuses it only after that launch on the stream."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
