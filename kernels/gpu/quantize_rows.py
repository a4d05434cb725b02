"""Quantise rows for an fp8 matmul, one program per row.

Only the output of attention needs this kernel; RMSNorm and SwiGLU quantise in their own kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastword.kernels.gpu.block_sizes import row_parts
from lastword.kernels.gpu.launch import launch


@triton.jit
def fp8_scale(peak, largest):
    """Return the divisor of a row whose largest absolute value is `peak`. It is never 0, so a row of zeros stays 0."""
    return tl.maximum(peak, 1e-12) / largest


@triton.jit
def _quantize_rows_kernel(
    x_ptr,  # [T, C]
    y_ptr,  # fp8 [T, C]
    scale_ptr,  # fp32 [T]
    largest,  # largest number of the fp8 format
    C: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """y · scale = x, where scale = max |row| / largest."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * C
    y_ptr += row * C
    h_at = tl.arange(0, HEAD)
    h = tl.load(x_ptr + h_at).to(tl.float32)
    peak = tl.max(tl.abs(h))
    if TAIL:
        t_at = HEAD + tl.arange(0, TAIL)
        t = tl.load(x_ptr + t_at, mask=t_at < C, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.max(tl.abs(t)))
    scale = fp8_scale(peak, largest)
    tl.store(scale_ptr + row, scale)
    tl.store(y_ptr + h_at, (h / scale).to(y_ptr.dtype.element_ty))
    if TAIL:
        tl.store(y_ptr + t_at, (t / scale).to(y_ptr.dtype.element_ty), mask=t_at < C)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Launch `_quantize_rows_kernel` on x [T, C], contiguous; return y [T, C] in `dtype` and the scales [T] in fp32."""
    T, C = x.shape
    y = torch.empty(T, C, dtype=dtype, device=x.device)
    scale = torch.empty(T, dtype=torch.float32, device=x.device)
    if T:
        head, tail, warps = row_parts(C)
        launch(
            _quantize_rows_kernel, (T,), x, y, scale, torch.finfo(dtype).max,
            C=C, HEAD=head, TAIL=tail, num_warps=warps,
        )  # fmt: skip
    return y, scale
