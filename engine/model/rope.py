"""RoPE frequencies: how far each pair of a head's dimensions rotates per position, plain or with YaRN."""

import math

from torch import Tensor

from lastword.kernels.caller_settings import count_up
from lastword.weights import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Return the angle per token of each pair i of dimensions: theta^(−2i/D), partly interpolated with YaRN.

    Args:
        rope: the RoPE settings of the model.
        head_dim: D, the width of a head.

    Returns:
        [D/2], fp32, in radians per token.

    Source:
        Su et al. 2021 §3.2; Peng et al. 2023 (YaRN) §3; transformers `_compute_yarn_parameters`.
    """
    exponents = (2 * count_up(0, head_dim // 2)).float() / head_dim
    powers = rope.theta**exponents
    if rope.kind == "default":
        return 1.0 / powers
    low, high = _yarn_range(rope, head_dim)
    ramp = ((count_up(0, head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    return (1.0 / (rope.factor * powers)) * ramp + (1.0 / powers) * (1 - ramp)


def _yarn_range(rope: RopeConfig, head_dim: int) -> tuple[float, float]:
    """Return the two indices of pairs of dimensions between which YaRN goes from plain to interpolated frequencies."""

    def dimension(rotations: float) -> float:
        wavelength = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return (low, high) if low != high else (low, high + 0.001)
