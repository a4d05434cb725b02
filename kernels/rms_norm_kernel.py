"""RMSNorm of packed rows, with and without the residual addition before it: one program a row, one pass.

A row is loaded as two power-of-two parts, so that C = 2560 takes 2048 + 512 lanes and not 4096.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _read(x_ptr, residual_ptr, at, mask, ADD: tl.constexpr):
    """Load part of a row in fp32; with ADD add it to the residual and give what was stored there."""
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + at, rounded, mask=mask)
        x = rounded.to(tl.float32)
    return x


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [T, C]
    residual_ptr,  # [T, C]; unread without ADD
    weight_ptr,  # [C]
    y_ptr,  # [T, C]
    eps,
    C: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    ADD: tl.constexpr,
):
    """y = x / sqrt(mean(x²) + eps) · weight in fp32, rounded once; with ADD of residual += x."""
    row = tl.program_id(0).to(tl.int64) * C
    dtype = y_ptr.dtype.element_ty
    h_at = tl.arange(0, HEAD)
    h = _read(x_ptr, residual_ptr, row + h_at, h_at < C, ADD)
    squares = tl.sum(h * h)
    if TAIL:
        t_at = HEAD + tl.arange(0, TAIL)
        t = _read(x_ptr, residual_ptr, row + t_at, t_at < C, ADD)
        squares += tl.sum(t * t)
    scale = 1.0 / tl.sqrt(squares / C + eps)
    weight = tl.load(weight_ptr + h_at).to(tl.float32)
    tl.store(y_ptr + row + h_at, (h * scale * weight).to(dtype))
    if TAIL:
        weight = tl.load(weight_ptr + t_at, mask=t_at < C, other=0.0).to(tl.float32)
        tl.store(y_ptr + row + t_at, (t * scale * weight).to(dtype), mask=t_at < C)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Launch `_rms_norm_kernel` on x [T, C], contiguous."""
    T, C = x.shape
    y = torch.empty_like(x)
    if T:
        _rms_norm_kernel[(T,)](x, x, weight, y, eps, ADD=False, **_constants(C))
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Launch `_rms_norm_kernel` with ADD on x and residual [T, C], contiguous."""
    T, C = x.shape
    y = torch.empty_like(x)
    if T:
        _rms_norm_kernel[(T,)](x, residual, weight, y, eps, ADD=True, **_constants(C))
    return y


def _constants(C: int) -> dict[str, int]:
    head, tail, warps = row_parts(C)
    return {"C": C, "HEAD": head, "TAIL": tail, "num_warps": warps}


def row_parts(C: int) -> tuple[int, int, int]:
    """The two power-of-two parts of a row, and the warps that hold it at 8 to 16 values a lane."""
    head = 1 << (C.bit_length() - 1)
    tail = triton.next_power_of_2(C - head) if head < C else 0
    return head, tail, min(max(head // 256, 1), 16)
