"""Matmuls in int8 on a CPU: the vendor library's (FBGEMM), with weights and activations quantised here.

A weight has one scale per output channel, made at load. Each row of activations is divided by its own largest size
before the library quantises it by a fixed scale: a scale of the whole batch would let a row's neighbours move it.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import ConfigError
from lastword.kernels.linear.plain import Linear

# Output channels that rounding would move by more than this share of their norm stay in fp32: those whose largest
# weight is over 9 times their RMS. A normal distribution moves by 0.01.
MAX_ROUNDING = 0.02


def check_int8() -> None:
    """Hold the machine to what int8 products need.

    Raises:   ConfigError where PyTorch has no FBGEMM here, as on ARM.
    """
    engine = torch.backends.quantized.engine
    if engine not in ("x86", "fbgemm"):
        raise ConfigError(
            "quantize",
            "int8 has no kernel on this machine",
            got=f"PyTorch's engine {engine!r}",
            expected="'x86' or 'fbgemm'",
            remedy="Leave quantize out.",
        )


def activation_levels() -> int:
    """Codes of an activation on each side of zero: 127, or 63 on a CPU without VNNI.

    There the library adds two products in 16 bits: 2 · 255 · 127 would saturate, 2 · 127 · 127 does not.
    """
    exact: bool = torch.cpu._is_vnni_supported()
    return 127 if exact else 63


class Int8Linear:
    """y = x · weightᵀ + bias, computed as s · (q(x / s) · q(weight)ᵀ) + bias with s = max |x| of each row.

    Args:     weight: [K_out, K_in] fp32 on a CPU; bias: [K_out] fp32 or None. x: [T, K_in] fp32.
    Returns:  [T, K_out] fp32; the int8 part of a row depends on no other row, bit for bit.
    Numerics: weight rounded to int8 by one scale per output channel (max |weight| / 127), x / s to `activation_levels`
              codes on each side of zero; products and sums exact in int32, rescaled in fp32. Output channels that do
              not round well (`MAX_ROUNDING`) in fp32. A row with a NaN or an infinity gives no finite row.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.packed, rounding = _pack(weight)
        self.exact_rows = (rounding > MAX_ROUNDING).nonzero().flatten()
        self.exact = Linear(weight[self.exact_rows]) if len(self.exact_rows) else None
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        scale = _row_scale(x)
        return self.product(x, x / scale, scale)

    def product(self, x: Tensor, scaled: Tensor, scale: Tensor) -> Tensor:
        """The product of x, of which `scaled` is x / scale, rows within ±1."""
        levels = activation_levels()
        op: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = op(scaled, 1 / levels, levels + 1, self.packed).mul_(scale)
        if self.exact is not None:
            y.index_copy_(1, self.exact_rows, self.exact(x))
        return y if self.bias is None else y.add_(self.bias)


class Int8SwigluLinear:
    """y = silu(x · gateᵀ) · (x · upᵀ), both products as in `Int8Linear`.

    Args:     gate_up: [2F, C] fp32 on a CPU, gate rows first. x: [T, C] fp32.
    Returns:  [T, F] fp32.
    Numerics: SwiGLU in fp32, the rest as in `Int8Linear`.
    """

    def __init__(self, gate_up: Tensor) -> None:
        self.gate, self.up = (Int8Linear(half) for half in gate_up.chunk(2))

    def __call__(self, x: Tensor) -> Tensor:
        scale = _row_scale(x)
        scaled = x / scale
        gate = F.silu(self.gate.product(x, scaled, scale), inplace=True)
        return gate.mul_(self.up.product(x, scaled, scale))


def _row_scale(x: Tensor) -> Tensor:
    """Largest |x| of each row, [T, 1]; a row of zeros keeps a divisor."""
    # 20 times as fast as a norm or aminmax over rows: 0.4 ms at 1024×3072 (AMD EPYC, one thread, torch 2.13)
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    return largest.clamp_min_(torch.finfo(x.dtype).tiny)


def _pack(weight: Tensor) -> tuple[Any, Tensor]:
    """Round to int8 and lay out as FBGEMM wants it; how far each row moved, over its norm [K_out]."""
    scale = _row_scale(weight) / 127
    zero = torch.zeros(len(scale), dtype=torch.int64)
    with warnings.catch_warnings():
        # PyTorch 2.13 announces the end of quantised tensors; the packed weight is made from nothing else.
        warnings.filterwarnings("ignore", message=".*quantize_per_channel.*", category=UserWarning)
        codes = torch.quantize_per_channel(
            weight.contiguous(), scale.flatten().double(), zero, 0, torch.qint8
        )
    moved = codes.dequantize().sub_(weight).norm(dim=1)
    return torch.ops.quantized.linear_prepack(codes, None), moved / weight.norm(dim=1)
