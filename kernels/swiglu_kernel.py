"""SwiGLU over the fused gate and up projections: one program a row and a block of columns."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of one program: divides the MLP widths 3072 and 12288, and leaves half a block of 9728.
_COLUMNS = 1024


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
    gate = tl.load(gate_up_ptr + row * (2 * F) + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * F) + F + column, mask=mask, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * F + column, y.to(y_ptr.dtype.element_ty), mask=mask)


def swiglu(gate_up: Tensor) -> Tensor:
    """Launch `_swiglu_kernel` on gate_up [T, 2F], contiguous."""
    T, F = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(T, F, dtype=gate_up.dtype, device=gate_up.device)
    if T:
        _swiglu_kernel[(T, triton.cdiv(F, _COLUMNS))](gate_up, y, F=F, BLOCK=_COLUMNS, num_warps=4)
    return y
