"""A simple implementation of 8-bit rounding, which gives transformers' layers the expected quantisation error.

It shares no code with the matmuls of `kernels`, only constants: the number of codes per side, the fp8 format of a
device, and the limit above which output channels are not rounded.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lastword.kernels import MAX_ROUNDING, activation_levels, fp8_format


class RoundedLinear(nn.Module):
    """A linear layer with weights [K_out, K_in] and inputs [..., K_in] rounded to 8 bits, row by row.

    Numerics:
        In int8, output channels with a rounding error above `MAX_ROUNDING` use exact weights and exact inputs.
    """

    def __init__(self, linear: nn.Linear, mode: str) -> None:
        super().__init__()
        weight = linear.weight.data
        self.mode = mode
        self.bias: Tensor | None = linear.bias
        self.weight = _round(weight, mode, 127)
        moved = (self.weight - weight).norm(dim=1) / weight.norm(dim=1)
        limit = MAX_ROUNDING if mode == "int8" else math.inf
        self.exact_rows = (moved > limit).nonzero().flatten()
        self.exact = weight[self.exact_rows]

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(_round(x, self.mode, activation_levels()), self.weight)
        y[..., self.exact_rows] = F.linear(x, self.exact)
        return y if self.bias is None else y + self.bias


def quantize_layer(layer: nn.Module, mode: str) -> None:
    """Replace every linear layer inside `layer` with a RoundedLinear."""
    for parent in list(layer.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, RoundedLinear(child, mode))


def is_quantized(mode: str, index: int, num_layers: int) -> bool:
    """Return whether a mode rounds layer `index`; fp8 does not round the first and the last layer."""
    return mode == "int8" or (mode == "fp8" and 0 < index < num_layers - 1)


def _round(x: Tensor, mode: str, levels: int) -> Tensor:
    """Round each row of x [..., K], with its own scale: its largest absolute value becomes the last code.

    Args:
        x: the rows.
        mode: "int8", with `levels` codes per side, or "fp8", with the codes of the device's fp8 format.
        levels: the number of int8 codes on each side of zero.
    """
    largest = x.float().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    if mode == "int8":
        scale = largest / levels
        return ((x.float() / scale).round() * scale).to(x.dtype)
    fp8 = fp8_format(x.device)
    scale = largest / torch.finfo(fp8).max
    return ((x.float() / scale).to(fp8).float() * scale).to(x.dtype)
