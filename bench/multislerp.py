"""Multi-SLERP written out as its formula stands, on whole tensors: what merges by `lastword.weights` are held to.

Shares nothing with them. Knows no files, and nothing of directions that cancel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def multislerp(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """Merge tensors to their weighted mean direction times their weighted mean norm.

        w = weights / sum(weights), or the weights as they are;  x_i = tensors_i - base
        S = sum_i w_i x_i / |x_i|;  out = base + (sum_i w_i |x_i|) S / |S|

    Args:
        tensors: N >= 1 of one shape; each is one vector.
        weights: N numbers.
        base: what is subtracted first and added last.
        normalize: divide the weights by their sum.

    Returns:
        Float64, of their shape.
    """
    origin = torch.zeros_like(tensors[0], dtype=torch.float64) if base is None else base.double()
    total = sum(weights) if normalize else 1.0
    direction, norm = torch.zeros_like(origin), 0.0
    for tensor, weight in zip(tensors, weights, strict=True):
        x = tensor.double() - origin
        direction += weight / total * x / x.norm()
        norm += weight / total * float(x.norm())
    merged: Tensor = origin + norm * direction / direction.norm()
    return merged
