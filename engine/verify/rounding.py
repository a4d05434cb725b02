"""A simple implementation of 8-bit rounding, which gives transformers' layers the expected quantisation error.

This module shares no code with the matmuls in `kernels` or the smoothing in `model`, only constants: the number of int8
codes on each side of zero, a device's fp8 format, the rounding error above which an output channel stays exact, and
three constants of smoothing.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lastword.kernels import (
    MAX_ROUNDING,
    SMOOTHING_LIMIT,
    SMOOTHING_SHARE,
    SMOOTHING_TOKENS,
    activation_levels,
    fp8_format,
)

# The linear layers that int8 smooths, grouped by their input.
_SMOOTHED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


class RoundedLinear(nn.Module):
    """A linear layer whose weights [K_out, K_in] and inputs [..., K_in] are rounded to 8 bits, row by row.

    Args:
        linear: the exact layer.
        mode: "int8" or "fp8".
        factors: [K_in]; before rounding, inputs are divided by them and weights multiplied by them. None for all ones.

    Numerics:
        In int8, an output channel with a rounding error above `MAX_ROUNDING` uses exact weights and exact inputs.
    """

    def __init__(self, linear: nn.Linear, mode: str, factors: Tensor | None = None) -> None:
        super().__init__()
        exact = linear.weight.data
        self.factors = torch.ones_like(exact[0]) if factors is None else factors
        weight = exact * self.factors
        self.mode = mode
        self.bias: Tensor | None = linear.bias
        self.weight = _round(weight, mode, 127)
        moved = (self.weight - weight).norm(dim=1) / weight.norm(dim=1)
        limit = MAX_ROUNDING if mode == "int8" else math.inf
        self.exact_rows = (moved > limit).nonzero().flatten()
        self.exact = exact[self.exact_rows]

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(_round(x / self.factors, self.mode, activation_levels()), self.weight)
        y[..., self.exact_rows] = F.linear(x, self.exact)
        return y if self.bias is None else y + self.bias


def quantize_layer(
    layer: nn.Module, mode: str, factors: Mapping[str, Tensor] | None = None
) -> None:
    """Replace every linear layer inside `layer` with a RoundedLinear; `factors` maps layer names to factors."""
    linears = {name: each for name, each in layer.named_modules() if isinstance(each, nn.Linear)}
    for name, linear in linears.items():
        parent, _, own = name.rpartition(".")
        rounded = RoundedLinear(linear, mode, (factors or {}).get(name))
        setattr(layer.get_submodule(parent), own, rounded)


def calibration_ids(vocab_size: int) -> list[int]:
    """Return the token ids, spread evenly over the vocabulary, with which int8 measures the size of channels."""
    return [number * vocab_size // SMOOTHING_TOKENS for number in range(SMOOTHING_TOKENS)]


def smoothing_factors(layer: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Measure the inputs of a decoder layer's linear layers; return {name: factors [K_in]} for those to smooth.

    Args:
        layer: a decoder layer of transformers, before it is rounded.
        run: runs the layer once on the calibration tokens, given to it as states [1, T, C].
    """
    inputs: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[name] = args[0][0, 1:]  # without the first token, whose row may be unlike all others

    handles = [
        layer.get_submodule(group[0]).register_forward_pre_hook(partial(keep, group[0]))
        for group in _SMOOTHED
    ]
    run()
    for handle in handles:
        handle.remove()
    factors: dict[str, Tensor] = {}
    for group in _SMOOTHED:
        weights = torch.cat([layer.get_parameter(f"{name}.weight") for name in group])
        shared = _factors(inputs[group[0]], weights)
        factors |= dict.fromkeys(group, shared)
    return factors


def _factors(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return a factor per channel, [K_in], from the inputs [T, K_in] and the weights [K_out, K_in]."""
    size = inputs.pow(2).mean(0).sqrt()
    wanted = size.pow(SMOOTHING_SHARE) / weights.abs().amax(0).pow(1 - SMOOTHING_SHARE)
    exponents = wanted.log2()
    channels = exponents.isfinite()  # the others have inputs or weights of zero
    if not channels.any():
        return torch.ones_like(size)
    exponents = (exponents - exponents[channels].mean()).round()
    exponents[~channels] = 0
    powers: Tensor = 2.0 ** exponents.clamp(-SMOOTHING_LIMIT, SMOOTHING_LIMIT)
    return powers


def is_quantized(mode: str, index: int, num_layers: int) -> bool:
    """Return whether a mode rounds layer `index`; fp8 does not round the first and the last layer."""
    return mode == "int8" or (mode == "fp8" and 0 < index < num_layers - 1)


def _round(x: Tensor, mode: str, levels: int) -> Tensor:
    """Round each row of x [..., K] with its own scale, so that its largest absolute value becomes the largest code.

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
