"""What 8 bits keep of a matrix, written plainly: transformers' layers rounded so have the drift that a mode must have.

Shares no code with the matmuls of `kernels`, only facts: codes on a side, the fp8 of a device, and what is left alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lastword.kernels import MAX_ROUNDING, activation_levels, fp8_format


class RoundedLinear(nn.Module):
    """A linear layer of which weights [K_out, K_in] and inputs [..., K_in] are rounded to 8 bits, row by row.

    Output channels that int8 would move too far (`MAX_ROUNDING`) stay as they are, and see the inputs as they are.
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
    """Put a RoundedLinear in the place of every linear layer within."""
    for parent in list(layer.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, RoundedLinear(child, mode))


def is_quantized(mode: str, index: int, num_layers: int) -> bool:
    """Whether a mode rounds layer `index`: fp8 leaves the first and the last alone."""
    return mode == "int8" or (mode == "fp8" and 0 < index < num_layers - 1)


def _round(x: Tensor, mode: str, levels: int) -> Tensor:
    """Round each row of [..., K], its largest size to the last code: of `levels` on a side, or of the fp8 format."""
    largest = x.float().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    if mode == "int8":
        scale = largest / levels
        return ((x.float() / scale).round() * scale).to(x.dtype)
    fp8 = fp8_format(x.device)
    scale = largest / torch.finfo(fp8).max
    return ((x.float() / scale).to(fp8).float() * scale).to(x.dtype)
