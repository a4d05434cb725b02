"""How fast each pair of a head's dimensions rotates with the position, plain and by yarn. Knows numbers only."""

import math

import torch
from torch import Tensor

from lastword.weights import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Give the rotations per token of each pair of dimensions: theta^(−2i/D), interpolated where yarn asks for it.

    Returns:
        [D/2] fp32.

    Source:
        Su et al. 2021 §3.2; Peng et al. 2023 (yarn) §3; transformers `_compute_yarn_parameters`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    powers = rope.theta**exponents
    if rope.kind == "default":
        return 1.0 / powers
    low, high = _yarn_range(rope, head_dim)
    ramp = ((torch.arange(head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    return (1.0 / (rope.factor * powers)) * ramp + (1.0 / powers) * (1 - ramp)


def _yarn_range(rope: RopeConfig, head_dim: int) -> tuple[float, float]:
    """Give the dimensions between which yarn goes from extrapolation to interpolation."""

    def dimension(rotations: float) -> float:
        wavelength = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return (low, high) if low != high else (low, high + 0.001)
