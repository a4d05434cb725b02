"""SwiGLU over the fused gate and up projections.

There is one program per row and block of columns; with quantisation, one program per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastword.kernels.gpu.block_sizes import row_parts
from lastword.kernels.gpu.launch import launch
from lastword.kernels.gpu.quantize_rows import fp8_scale

# Columns per program. 1024 divides the MLP widths 3072 and 12288; for 9728 the last block is half full.
_COLUMNS = 1024


@triton.jit
def _gate(gate_up_ptr, at, mask, F: tl.constexpr):
    """Compute part of a row of silu(gate) · up, in fp32."""
    gate = tl.load(gate_up_ptr + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + F + at, mask=mask, other=0.0).to(tl.float32)
    return gate * tl.sigmoid(gate) * up


@triton.jit
def _swiglu_kernel(
    gate_up_ptr,  # [T, 2F], gate first
    y_ptr,  # [T, F]
    F: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y = gate · sigmoid(gate) · up, in fp32, rounded once."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < F
    y = _gate(gate_up_ptr + row * (2 * F), column, mask, F)
    tl.store(y_ptr + row * F + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_quantize_kernel(
    gate_up_ptr,  # [T, 2F], gate first
    y_ptr,  # fp8 [T, F]
    scale_ptr,  # fp32 [T]
    largest,  # largest number of the fp8 format
    F: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """y · scale = silu(gate) · up, where scale = max |row| / largest."""
    row = tl.program_id(0).to(tl.int64)
    gate_up_ptr += row * (2 * F)
    y_ptr += row * F
    h_at = tl.arange(0, HEAD)
    h = _gate(gate_up_ptr, h_at, h_at < F, F)
    peak = tl.max(tl.abs(h))
    if TAIL:
        t_at = HEAD + tl.arange(0, TAIL)
        t = _gate(gate_up_ptr, t_at, t_at < F, F)
        peak = tl.maximum(peak, tl.max(tl.abs(t)))
    scale = fp8_scale(peak, largest)
    tl.store(scale_ptr + row, scale)
    tl.store(y_ptr + h_at, (h / scale).to(y_ptr.dtype.element_ty))
    if TAIL:
        tl.store(y_ptr + t_at, (t / scale).to(y_ptr.dtype.element_ty), mask=t_at < F)


def swiglu(gate_up: Tensor) -> Tensor:
    """Launch `_swiglu_kernel` on gate_up [T, 2F], contiguous."""
    T, F = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(T, F, dtype=gate_up.dtype, device=gate_up.device)
    if T:
        grid = (T, triton.cdiv(F, _COLUMNS))
        launch(_swiglu_kernel, grid, gate_up, y, F=F, BLOCK=_COLUMNS, num_warps=4)
    return y


def swiglu_quantize(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Launch `_swiglu_quantize_kernel` on gate_up [T, 2F], contiguous."""
    T, F = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(T, F, dtype=dtype, device=gate_up.device)
    scale = torch.empty(T, dtype=torch.float32, device=gate_up.device)
    if T:
        head, tail, warps = row_parts(F)
        launch(
            _swiglu_quantize_kernel, (T,), gate_up, y, scale, torch.finfo(dtype).max,
            F=F, HEAD=head, TAIL=tail, num_warps=warps,
        )  # fmt: skip
    return y, scale
