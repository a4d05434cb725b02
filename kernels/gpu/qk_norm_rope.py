"""QK-norm and rotary embedding of the fused qkv rows, in one pass and in place; one program per 8 heads of a row."""

import triton
import triton.language as tl
from torch import Tensor

from lastword.kernels.gpu.launch import launch

# Heads per program: 8 heads of 128 are 2 kB, and 8 divides the 24 and 40 heads of the published models.
_HEADS = 8


@triton.jit
def _qk_norm_rope_kernel(
    qkv_ptr,  # [T, (H + 2·KH)·D]
    q_weight_ptr,  # [D]
    k_weight_ptr,  # [D]
    cos_ptr,  # [T, D/2] fp32
    sin_ptr,  # [T, D/2] fp32
    eps,
    WIDTH: tl.constexpr,  # elements of a row
    H: tl.constexpr,
    KH: tl.constexpr,
    HALF: tl.constexpr,  # D/2
    BLOCK_HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    """(a, b) = halves of rms_norm(head); head = (a·cos − b·sin, b·cos + a·sin), in fp32, rounded once."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, BLOCK_HALF)[None, :]
    mask = (head < H + KH) & (d < HALF)
    low_ptr = qkv_ptr + row * WIDTH + head * (2 * HALF) + d
    a = tl.load(low_ptr, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(low_ptr + HALF, mask=mask, other=0.0).to(tl.float32)
    # Everything is loaded before the sums, which wait for all warps.
    weight_ptr = tl.where(head < H, q_weight_ptr, k_weight_ptr) + d
    a_weight = tl.load(weight_ptr, mask=mask, other=0.0).to(tl.float32)
    b_weight = tl.load(weight_ptr + HALF, mask=mask, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + row * HALF + d, mask=d < HALF, other=0.0)
    sin = tl.load(sin_ptr + row * HALF + d, mask=d < HALF, other=0.0)
    scale = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)
    a = a * scale[:, None] * a_weight
    b = b * scale[:, None] * b_weight
    dtype = qkv_ptr.dtype.element_ty
    tl.store(low_ptr, (a * cos - b * sin).to(dtype), mask=mask)
    tl.store(low_ptr + HALF, (b * cos + a * sin).to(dtype), mask=mask)


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> None:
    """Launch `_qk_norm_rope_kernel` on qkv [T, (H + 2·KH)·D], contiguous."""
    T, half = cos.shape
    grid = (T, triton.cdiv(num_heads + num_kv_heads, _HEADS))
    if T:
        launch(
            _qk_norm_rope_kernel, grid, qkv, q_weight, k_weight, cos, sin, eps,
            WIDTH=qkv.shape[1], H=num_heads, KH=num_kv_heads, HALF=half,
            BLOCK_HALF=triton.next_power_of_2(half), HEADS=_HEADS, num_warps=4,
        )  # fmt: skip
