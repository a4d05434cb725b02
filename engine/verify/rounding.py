"""What 8 bits keep of a matrix, written plainly: transformers' layers rounded so have the drift that a mode must have.

Shares no code with the products of `kernels`, only facts: codes on a side, and which channels int8 leaves alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lastword.kernels import MAX_ROUNDING, activation_levels


class RoundedLinear(nn.Module):
    """A linear layer of which weights [K_out, K_in] and inputs [..., K_in] are rounded to 8 bits, row by row.

    Output channels that int8 would move too far (`MAX_ROUNDING`) stay as they are, and see the inputs as they are.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.data
        self.bias: Tensor | None = linear.bias
        self.weight = _round_int8(weight, 127)
        moved = (self.weight - weight).norm(dim=1) / weight.norm(dim=1)
        self.exact_rows = (moved > MAX_ROUNDING).nonzero().flatten()
        self.exact = weight[self.exact_rows]

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(_round_int8(x, activation_levels()), self.weight)
        y[..., self.exact_rows] = F.linear(x, self.exact)
        return y if self.bias is None else y + self.bias


def quantize_layer(layer: nn.Module) -> None:
    """Put a RoundedLinear in the place of every linear layer within."""
    for parent in list(layer.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, RoundedLinear(child))


def _round_int8(x: Tensor, levels: int) -> Tensor:
    """Round each row of [..., K] to `levels` codes on each side of zero, its largest size to the last."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / levels
    return (x / scale).round() * scale
