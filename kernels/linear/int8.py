"""Linear layers in int8 on a CPU: oneDNN's matmuls, with weights and activations quantised here.

A weight has one scale per output channel, computed when the model is loaded. Each row of activations has its own scale,
from its largest absolute value: with one scale for the whole batch, a row's result would depend on the other rows.
Activations are stored as unsigned codes, because oneDNN is fast with signed ones only on processors with AMX.
"""

from dataclasses import dataclass
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
# Before rounding, each channel of a layer's activations, except the inputs of its output projection, is divided by a
# factor, so that the channels differ less in size (`engine/model/smoothing.py`). With s = SMOOTHING_SHARE, a channel's
# ratio is rms^s / (largest weight)^(1 - s). The factor is a power of two near this ratio divided by the geometric mean
# of all channels' ratios. SMOOTHING_LIMIT bounds the exponent of the factor. The RMS of a channel is measured on
# SMOOTHING_TOKENS tokens, without the first of them.
SMOOTHING_TOKENS = 64
SMOOTHING_SHARE = 0.5
SMOOTHING_LIMIT = 8


def check_int8() -> None:
    """Check that this machine can run int8 matmuls.

    Raises:
        ConfigError: PyTorch has no oneDNN here, or the processor is not an x86 processor with AVX2 or more.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not onednn or not capability.startswith(("AVX2", "AVX512")):
        raise ConfigError(
            "quantize",
            "int8 is not supported on this machine",
            got=f"PyTorch {'with' if onednn else 'without'} oneDNN for a CPU with {capability}",
            expected="oneDNN and AVX2 or AVX512",
            remedy="Leave quantize out to compute without quantisation.",
        )


def activation_levels() -> int:
    """Return the number of activation codes on each side of zero: 127, or 63 on a CPU without VNNI.

    The code of zero is one more than this number, so that all codes are positive. Without VNNI the library adds two
    products in 16 bits. With 127 codes a sum could reach 2 · 255 · 127 and saturate; with 63 it stays within
    2 · 127 · 127.
    """
    exact: bool = torch.cpu._is_vnni_supported()
    return 127 if exact else 63


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows of activations as 8-bit codes: x = (codes − zero) · scale, up to rounding.

    Args:
        x: [T, K], the rows before rounding, for output channels that are computed in fp32.
        codes: [T, K] uint8; zero is `activation_levels` + 1.
        scale: [T, 1] fp32, each row's largest |x| divided by `activation_levels`.
    """

    x: Tensor
    codes: Tensor
    scale: Tensor

    @staticmethod
    def of(x: Tensor) -> "QuantizedRows":
        """Round the rows of x [T, K] fp32 to 8-bit codes."""
        levels = activation_levels()
        scale = _row_scale(x, levels)
        # Adding the code of zero and half a code, then rounding down, takes one pass fewer than rounding to the nearest
        # and adding; only ties differ.
        codes = torch.div(x, scale).add_(levels + 1.5).to(torch.uint8)
        return QuantizedRows(x, codes, scale)


class Int8Linear:
    """Linear layer y = x · weightᵀ + bias, computed as s · t · (q(x / s) · q(weight / t)ᵀ) + bias.

    There is one scale s per row of x and one scale t per output channel: the largest absolute value divided by the
    number of codes on each side of zero.

    Args:
        weight: [K_out, K_in] fp32 on a CPU.
        bias: [K_out] fp32 or None.

    Called with x [T, K_in] fp32, the layer returns y [T, K_out] fp32. In the channels computed in int8, each row of y
    has the same bits whatever the other rows of x are.

    Numerics:
        Rounds weights to 127 codes on each side of zero, and activations to `activation_levels`. Products and sums are
        exact in int32 and rescaled in fp32. Output channels that do not round well (`MAX_ROUNDING`) are computed in
        fp32. If an input row has a NaN or an infinity, its output row is not finite.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.packed, self.scale, rounding = _pack(weight)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        self.exact_rows = (rounding > MAX_ROUNDING).nonzero().flatten()
        self.exact = Linear(weight[self.exact_rows]) if len(self.exact_rows) else None
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(QuantizedRows.of(x))

    def product(self, rows: QuantizedRows) -> Tensor:
        """Return y for rows of x that are already quantised."""
        op: Any = torch.ops.onednn.qlinear_pointwise
        y: Tensor = op(
            rows.codes, 1.0, activation_levels() + 1, self.packed, self.scale, self.zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        ).mul_(rows.scale)  # fmt: skip
        if self.exact is not None:
            y.index_copy_(1, self.exact_rows, self.exact(rows.x))
        return y if self.bias is None else y.add_(self.bias)


class Int8SwigluLinear:
    """Gate and up projections of an MLP with SwiGLU: y = silu(x · gateᵀ) · (x · upᵀ), in int8.

    Args:
        gate, up: [F, C] fp32 on a CPU.

    Called with x [T, C] fp32, the layer returns y [T, F] fp32.

    Numerics:
        Computes SwiGLU in fp32, and the projections as in `Int8Linear`.
    """

    def __init__(self, gate: Tensor, up: Tensor) -> None:
        self.gate, self.up = Int8Linear(gate), Int8Linear(up)

    def __call__(self, x: Tensor) -> Tensor:
        rows = QuantizedRows.of(x)
        gate = F.silu(self.gate.product(rows), inplace=True)
        return gate.mul_(self.up.product(rows))


def _row_scale(x: Tensor, levels: int) -> Tensor:
    """Return the largest |x| of each row divided by `levels`, [T, 1]; for a row of zeros, a small positive number."""
    # amax and amin are 4 to 20 times as fast as a norm or aminmax over rows (bench/LOG.md, 2026-11-30).
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    return largest.clamp_min_(torch.finfo(x.dtype).tiny * levels).div_(levels)


def _pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round a weight to int8 and pack it for oneDNN; also return the scales and relative rounding errors, [K_out]."""
    scale = _row_scale(weight, 127)
    codes = torch.div(weight, scale).round_()
    moved = torch.mul(codes, scale).sub_(weight).norm(dim=1)
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes.to(torch.int8), None)
    return packed, scale.flatten(), moved / weight.norm(dim=1)
