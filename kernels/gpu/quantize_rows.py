"""Quantise rows for an fp8 matmul, one program per row.

Only the output of attention needs this kernel; RMSNorm and SwiGLU quantise in their own kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastword.kernels.gpu.block_sizes import row_block
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
    BLOCK: tl.constexpr,
):
    """y · scale = x, where scale = max |row| / largest."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * C
    y_ptr += row * C
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < C, other=0.0).to(tl.float32)
    scale = fp8_scale(tl.max(tl.abs(x)), largest)
    tl.store(scale_ptr + row, scale)
    tl.store(y_ptr + at, (x / scale).to(y_ptr.dtype.element_ty), mask=at < C)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Launch `_quantize_rows_kernel` on x [T, C], contiguous; return y [T, C] in `dtype` and the scales [T] in fp32."""
    T, C = x.shape
    y = torch.empty(T, C, dtype=dtype, device=x.device)
    scale = torch.empty(T, dtype=torch.float32, device=x.device)
    if T:
        block, warps = row_block(C)
        launch(
            _quantize_rows_kernel, (T,), x, y, scale, torch.finfo(dtype).max,
            C=C, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return y, scale
