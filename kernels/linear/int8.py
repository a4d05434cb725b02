"""Linear layers in int8 on a CPU: FBGEMM's matmuls, with weights and activations quantised here.

A weight has one scale per output channel, computed when the model is loaded. Each row of activations is divided by its
own largest absolute value, and then the library quantises it with a fixed scale. With one scale for the whole batch, a
row's result would depend on the other rows.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import ConfigError
from lastword.kernels.linear.plain import Linear

# An output channel stays in fp32 if rounding would change its weights by more than this share of their norm. This
# happens if the largest weight is over 11 times the RMS of the channel's weights. Rounding changes normally distributed
# weights by a share of 0.01.
MAX_ROUNDING = 0.025
# Before rounding, each channel of the activations is divided by a factor, so that all channels become about equally
# large (`model/smoothing.py`). The factor is a power of two near rms^s / (largest weight)^(1 - s) with
# s = SMOOTHING_SHARE, divided by the geometric mean of this ratio over the channels. SMOOTHING_LIMIT bounds the
# exponent of the factor. The RMS of a channel is measured on SMOOTHING_TOKENS tokens, without the first of them.
SMOOTHING_TOKENS = 64
SMOOTHING_SHARE = 0.5
SMOOTHING_LIMIT = 8


def check_int8() -> None:
    """Check that this machine can run int8 matmuls.

    Raises:
        ConfigError: PyTorch has no FBGEMM here, for example on ARM.
    """
    engines = torch.backends.quantized.supported_engines
    if not {"x86", "fbgemm"} & set(engines):
        raise ConfigError(
            "quantize",
            "int8 is not supported on this machine",
            got=f"PyTorch's quantisation engines {', '.join(engines)}",
            expected="x86 or fbgemm",
            remedy="Leave quantize out to compute without quantisation.",
        )


def activation_levels() -> int:
    """Return the number of activation codes on each side of zero: 127, or 63 on a CPU without VNNI.

    Without VNNI the library adds two products in 16 bits. With 127 codes a sum could reach 2 · 255 · 127 and saturate;
    with 63 it stays within 2 · 127 · 127.
    """
    exact: bool = torch.cpu._is_vnni_supported()
    return 127 if exact else 63


class Int8Linear:
    """Linear layer y = x · weightᵀ + bias, computed as s · (q(x / s) · q(weight)ᵀ) + bias with s = max |x| per row.

    Args:
        weight: [K_out, K_in] fp32 on a CPU.
        bias: [K_out] fp32 or None.

    Called with x [T, K_in] fp32, the layer returns y [T, K_out] fp32. In the channels computed in int8, row t of y has
    the same bits whatever the other rows of x are.

    Numerics:
        Rounds the weight to int8 with one scale per output channel (max |weight| / 127), and x / s to
        `activation_levels` codes on each side of zero. Products and sums are exact in int32 and rescaled in fp32.
        Output channels that do not round well (`MAX_ROUNDING`) are computed in fp32. If an input row has a NaN or an
        infinity, its output row is not finite.
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
        """Return y for x, given `scale`, the largest |x| of each row, and `scaled` = x / scale, within ±1."""
        levels = activation_levels()
        op: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = op(scaled, 1 / levels, levels + 1, self.packed).mul_(scale)
        if self.exact is not None:
            y.index_copy_(1, self.exact_rows, self.exact(x))
        return y if self.bias is None else y.add_(self.bias)


class Int8SwigluLinear:
    """Gate and up projections of an MLP with SwiGLU: y = silu(x · gateᵀ) · (x · upᵀ), in int8.

    Args:
        gate_up: [2F, C] fp32 on a CPU, gate rows first.

    Called with x [T, C] fp32, the layer returns y [T, F] fp32.

    Numerics:
        Computes SwiGLU in fp32, and the projections as in `Int8Linear`.
    """

    def __init__(self, gate_up: Tensor) -> None:
        self.gate, self.up = (Int8Linear(half) for half in gate_up.chunk(2))

    def __call__(self, x: Tensor) -> Tensor:
        scale = _row_scale(x)
        scaled = x / scale
        gate = F.silu(self.gate.product(x, scaled, scale), inplace=True)
        return gate.mul_(self.up.product(x, scaled, scale))


def _row_scale(x: Tensor) -> Tensor:
    """Return the largest |x| of each row, [T, 1]; for a row of zeros the smallest normal number, a safe divisor."""
    # amax and amin are 20 times as fast as a norm or aminmax over rows: 0.4 ms at 1024×3072 (AMD EPYC, one thread,
    # torch 2.13).
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    return largest.clamp_min_(torch.finfo(x.dtype).tiny)


def _pack(weight: Tensor) -> tuple[Any, Tensor]:
    """Round a weight to int8 and pack it for FBGEMM; also return each row's relative rounding error, [K_out]."""
    scale = _row_scale(weight) / 127
    zero = torch.zeros(len(scale), dtype=torch.int64, device=weight.device)
    with warnings.catch_warnings():
        # PyTorch 2.13 warns that quantised tensors are deprecated, but only they can be packed.
        warnings.filterwarnings("ignore", message=".*quantize_per_channel.*", category=UserWarning)
        codes = torch.quantize_per_channel(
            weight.contiguous(), scale.flatten().double(), zero, 0, torch.qint8
        )
    moved = codes.dequantize().sub_(weight).norm(dim=1)
    return torch.ops.quantized.linear_prepack(codes, None), moved / weight.norm(dim=1)
