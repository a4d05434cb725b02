"""One decoder layer of the Qwen3 forward, with its matmuls in one of several precisions.

Each layer maps (x, residual) to (x, residual). The last layer computes keys and values for all rows, and everything
else only for last-token rows. This module knows kernels, but no checkpoints or devices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lastword import kernels
from lastword.kernels import AttentionPlan, MatmulInput
from lastword.model.prompt_cache import KeysValues
from lastword.weights import LayerWeights, ModelConfig

# The classes for matmuls in each mode: one for plain projections, one for the gate and up projections with SwiGLU. In
# fp8 both take quantised rows, and the second returns quantised rows.
_LinearClasses = tuple[
    Callable[..., Callable[[Any], Tensor]], Callable[[Tensor, Tensor], Callable[[Any], Any]]
]
_MATMULS: dict[str | None, _LinearClasses] = {
    None: (kernels.Linear, kernels.SwigluLinear),
    "int8": (kernels.Int8Linear, kernels.Int8SwigluLinear),
    "fp8": (kernels.Fp8Linear, kernels.Fp8SwigluLinear),
    "observe": (
        kernels.ObservedLinear,
        kernels.ObservedSwigluLinear,
    ),  # measures inputs while loading
}


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs that all layers of one forward share.

    Args:
        plan: the attention plan.
        cos, sin: [T, D/2], fp32, the RoPE tables.
        final_rows: [N'], the last-token rows, as indices into the T rows.
        prompts: keys and values of the batch's cached prompts.
        recorded: receives the batch's own keys and values, if given.
    """

    plan: AttentionPlan
    cos: Tensor
    sin: Tensor
    final_rows: Tensor
    prompts: Sequence[KeysValues] = ()
    recorded: KeysValues | None = None

    def keys_and_values(self, layer: int, kv: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values of a layer: the prompts', then the batch's `kv`. Copy `kv` to `recorded`, if given."""
        if self.recorded is not None:
            self.recorded.layers.append(kv.clone())
        if self.prompts:
            kv = torch.cat([*(prompt.layers[layer] for prompt in self.prompts), kv])
        return kv.chunk(2, dim=1)


class Layer:
    """One decoder layer; the last has one projection for queries, and another for keys and values together."""

    def __init__(
        self, weights: LayerWeights, config: ModelConfig, number: int, *, quantize: str | None
    ) -> None:
        self.config, self.number = config, number
        self.input_norm, self.post_norm = weights.input_norm, weights.post_norm
        self.q_norm, self.k_norm = weights.q_norm, weights.k_norm
        self.scale = config.head_dim**-0.5
        q_rows = config.num_attention_heads * config.head_dim
        bias = weights.qkv_bias
        linear, swiglu_linear = _MATMULS[quantize]
        self.add_norm: Callable[..., Any] = kernels.add_rms_norm  # returns MatmulInput
        if quantize == "fp8":
            fp8 = kernels.fp8_format(weights.o.device)
            self.add_norm = partial(kernels.add_rms_norm_quantize, dtype=fp8)
        if number == config.num_hidden_layers - 1:
            self.q = linear(weights.qkv[:q_rows], None if bias is None else bias[:q_rows])
            self.kv = linear(weights.qkv[q_rows:], None if bias is None else bias[q_rows:])
        else:
            self.qkv = linear(weights.qkv, bias)
        self.o = linear(weights.o, weights.o_bias)
        self.gate_up = swiglu_linear(weights.gate, weights.up)
        self.down = linear(weights.down)

    def _norm_rope(self, x: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> None:
        kernels.qk_norm_rope(
            x, self.q_norm, self.k_norm, cos, sin,
            num_heads=heads, num_kv_heads=kv_heads, eps=self.config.rms_norm_eps,
        )  # fmt: skip

    def _mlp(self, attended: Tensor, residual: Tensor) -> Tensor:
        x = self.add_norm(self.o(attended), residual, self.post_norm, self.config.rms_norm_eps)
        return self.down(self.gate_up(x))

    def forward(self, x: MatmulInput, batch: Batch, residual: Tensor) -> Tensor:
        """Map normalised x [T, C] to the MLP's output [T, C]; add attention's output to `residual` in place."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        qkv = self.qkv(x)
        self._norm_rope(qkv, batch.cos, batch.sin, heads, kv_heads)
        qkv = qkv.view(len(qkv), -1, self.config.head_dim)  # [T, H + 2·KH, D]
        k, v = batch.keys_and_values(self.number, qkv[:, heads:])
        attended = kernels.forest_attention(qkv[:, :heads], k, v, batch.plan, self.scale)
        return self._mlp(attended, residual)

    def forward_last(self, x: Tensor, batch: Batch, residual: Tensor) -> Tensor:
        """Map normalised x [T, C] to the MLP's output [N', C] of the last-token rows.

        The output of attention is added to `residual` [N', C] in place.
        """
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        rows = batch.final_rows
        q, kv = self.q(x[rows]), self.kv(x)
        self._norm_rope(q, batch.cos[rows], batch.sin[rows], heads, 0)
        self._norm_rope(kv, batch.cos, batch.sin, 0, kv_heads)
        kv = kv.view(len(kv), -1, self.config.head_dim)  # [T, 2·KH, D]
        k, v = batch.keys_and_values(self.number, kv)
        q = q.view(len(q), heads, self.config.head_dim)
        attended = kernels.final_attention(q, k, v, batch.plan, self.scale)
        return self._mlp(attended, residual)
