"""RMSNorm of packed rows, one program per row.

There are four variants. The first normalises x; the second, an embedding that it looks up; the third, residual + x.
The fourth normalises residual + x too, and quantises the result to fp8. It loads a row in two parts whose sizes are
powers of two: for C = 2560 it would otherwise issue so many instructions for masked lanes that they would take longer
than the memory accesses (bench/LOG.md, 2026-12-01).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastword.kernels.gpu.block_sizes import row_block, row_parts
from lastword.kernels.gpu.launch import launch
from lastword.kernels.gpu.quantize_rows import fp8_scale


@triton.jit
def _read(x_ptr, residual_ptr, at, mask, ADD: tl.constexpr, KEEP: tl.constexpr):
    """Load (part of) a row in fp32. ADD adds the residual; KEEP rounds the result and stores it in the residual."""
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if KEEP:
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + at, rounded, mask=mask)
        x = rounded.to(tl.float32)
    return x


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [T, C]; if LOOKUP, [V, C]
    ids_ptr,  # [T]; used if LOOKUP
    residual_ptr,  # [T, C]; used if ADD or LOOKUP
    weight_ptr,  # [C]
    y_ptr,  # [T, C]
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    LOOKUP: tl.constexpr,
):
    """y = h / sqrt(mean(h²) + eps) · weight in fp32, rounded once; h is x, x[ids] (LOOKUP) or residual += x (ADD)."""
    number = tl.program_id(0).to(tl.int64)
    row = number * C
    x_ptr += tl.load(ids_ptr + number).to(tl.int64) * C if LOOKUP else row
    residual_ptr += row
    dtype = y_ptr.dtype.element_ty
    at = tl.arange(0, BLOCK)
    h = _read(x_ptr, residual_ptr, at, at < C, ADD, ADD or LOOKUP)
    # The weight is loaded before the sum, which waits for all warps.
    weight = tl.load(weight_ptr + at, mask=at < C, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(h * h) / C + eps)
    tl.store(y_ptr + row + at, (h * scale * weight).to(dtype), mask=at < C)


@triton.jit
def _add_rms_norm_quantize_kernel(
    x_ptr,  # [T, C]
    residual_ptr,  # [T, C]
    weight_ptr,  # [C]
    y_ptr,  # fp8 [T, C]
    scale_ptr,  # fp32 [T]
    eps,
    largest,  # largest number of the fp8 format
    C: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """residual += x; y · scale = rms_norm(residual) in fp32, where scale = max |row| / largest."""
    number = tl.program_id(0).to(tl.int64)
    row = number * C
    x_ptr += row
    residual_ptr += row
    h_at = tl.arange(0, HEAD)
    h = _read(x_ptr, residual_ptr, h_at, h_at < C, ADD=True, KEEP=True)
    squares = tl.sum(h * h)
    if TAIL:
        t_at = HEAD + tl.arange(0, TAIL)
        t = _read(x_ptr, residual_ptr, t_at, t_at < C, ADD=True, KEEP=True)
        squares += tl.sum(t * t)
    inverse = 1.0 / tl.sqrt(squares / C + eps)
    h = h * inverse * tl.load(weight_ptr + h_at).to(tl.float32)
    peak = tl.max(tl.abs(h))
    if TAIL:
        t = t * inverse * tl.load(weight_ptr + t_at, mask=t_at < C, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.max(tl.abs(t)))
    scale = fp8_scale(peak, largest)
    tl.store(scale_ptr + number, scale)
    tl.store(y_ptr + row + h_at, (h / scale).to(y_ptr.dtype.element_ty))
    if TAIL:
        tl.store(y_ptr + row + t_at, (t / scale).to(y_ptr.dtype.element_ty), mask=t_at < C)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Launch `_rms_norm_kernel` on x [T, C], contiguous."""
    y = torch.empty_like(x)
    _launch(x, x, x, weight, y, eps)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Launch `_rms_norm_kernel` with ADD on x and residual [T, C], contiguous."""
    y = torch.empty_like(x)
    _launch(x, x, residual, weight, y, eps, ADD=True)
    return y


def embed_rms_norm(ids: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Launch `_rms_norm_kernel` with LOOKUP on ids [T] and table [V, C], contiguous."""
    residual = weight.new_empty(len(ids), len(weight))
    y = torch.empty_like(residual)
    _launch(table, ids, residual, weight, y, eps, LOOKUP=True)
    return residual, y


def _launch(
    x: Tensor, ids: Tensor, residual: Tensor, weight: Tensor, y: Tensor, eps: float, *,
    ADD: bool = False, LOOKUP: bool = False,
) -> None:  # fmt: skip
    T, C = y.shape
    block, warps = row_block(C)
    if T:
        launch(
            _rms_norm_kernel, (T,), x, ids, residual, weight, y, eps,
            C=C, BLOCK=block, ADD=ADD, LOOKUP=LOOKUP, num_warps=warps,
        )  # fmt: skip


def add_rms_norm_quantize(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Launch `_add_rms_norm_quantize_kernel` on x and residual [T, C], contiguous."""
    T, C = x.shape
    y = torch.empty(T, C, dtype=dtype, device=x.device)
    scale = torch.empty(T, dtype=torch.float32, device=x.device)
    if T:
        head, tail, warps = row_parts(C)
        launch(
            _add_rms_norm_quantize_kernel, (T,),
            x, residual, weight, y, scale, eps, torch.finfo(dtype).max,
            C=C, HEAD=head, TAIL=tail, num_warps=warps,
        )  # fmt: skip
    return y, scale
