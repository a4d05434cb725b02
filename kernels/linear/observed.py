"""Linear layers that also measure the channels of their input, on a few rows while a model is loaded for int8."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.kernels.ops import swiglu


class ObservedLinear:
    """Unquantised linear layer y = x · weightᵀ + bias that measures the RMS of each channel of its input.

    Each call replaces `input_rms`, [K_in] fp32.

    Args:
        weight: [K_out, K_in] fp32.
        bias: [K_out] fp32 or None.

    Numerics:
        `input_rms` covers all rows except the first, because in many models the first token's row has a few huge values
        that no other row has.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self.input_rms: Tensor = torch.empty(0, dtype=weight.dtype, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        self.input_rms = x[1:].square().mean(0).sqrt()
        return F.linear(x, self.weight, self.bias)


class ObservedSwigluLinear(ObservedLinear):
    """Gate and up projections of an MLP with SwiGLU that measure the RMS of each input channel, like `ObservedLinear`.

    Args:
        gate, up: [F, C] fp32.
    """

    def __init__(self, gate: Tensor, up: Tensor) -> None:
        super().__init__(torch.cat([gate, up]))

    def __call__(self, x: Tensor) -> Tensor:
        return swiglu(super().__call__(x))
