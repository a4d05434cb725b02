"""One decoder layer of the Qwen3 forward, with its matmuls in one of several precisions.

Each layer maps (x, residual) to (x, residual), where x is the normalised residual stream. The last layer computes keys
and values for all rows, and everything else only for last-token rows. This module knows kernels, but no checkpoints.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm of the residual stream, to which the output of the projection before the norm is added first.

    Args:
        weight: [C].
        eps: epsilon.
        fp8: the format to quantise the result to; None leaves it in the compute dtype.
    """

    weight: Tensor
    eps: float
    fp8: torch.dtype | None = None

    def after(
        self, linear: Callable[..., Any], x: Any, residual: Tensor, *, adds: bool
    ) -> tuple[MatmulInput, Tensor]:
        """Return the norm of residual + linear(x), and this sum. The sum may overwrite `residual`.

        Args:
            linear: the projection before the norm.
            x: the input of the projection.
            residual: the residual stream, of as many rows.
            adds: whether the projection adds `residual` to its own sums, which saves a pass over the residual stream.
        """
        if adds:
            residual = linear(x, residual)
            return kernels.rms_norm(residual, self.weight, self.eps), residual
        y = linear(x)
        if self.fp8 is None:
            return kernels.add_rms_norm(y, residual, self.weight, self.eps), residual
        quantized = kernels.add_rms_norm_quantize(y, residual, self.weight, self.eps, self.fp8)
        return quantized, residual


class Layer:
    """One decoder layer. The last layer has separate projections for queries and for keys and values."""

    def __init__(
        self, weights: LayerWeights, config: ModelConfig, number: int, *, quantize: str | None
    ) -> None:
        self.config, self.number = config, number
        fp8 = kernels.fp8_format(weights.o.device) if quantize == "fp8" else None
        self.input_norm = Norm(weights.input_norm, config.rms_norm_eps, fp8)
        self.post_norm = Norm(weights.post_norm, config.rms_norm_eps, fp8)
        self.q_norm, self.k_norm = weights.q_norm, weights.k_norm
        self.scale = config.head_dim**-0.5
        q_rows = config.num_attention_heads * config.head_dim
        bias = weights.qkv_bias
        linear, swiglu_linear = _MATMULS[quantize]
        if number == config.num_hidden_layers - 1:
            self.q = linear(weights.qkv[:q_rows], None if bias is None else bias[:q_rows])
            self.kv = linear(weights.qkv[q_rows:], None if bias is None else bias[q_rows:])
        else:
            self.qkv = linear(weights.qkv, bias)
        self.o = linear(weights.o, weights.o_bias)
        self.gate_up = swiglu_linear(weights.gate, weights.up)
        self.down = linear(weights.down)
        # oneDNN adds the residual stream to a packed matmul's sums. Triton's kernels add it in the norm instead.
        packed = isinstance(self.o, kernels.Linear) and self.o.packed
        self.adds = packed and not kernels.launches_triton(weights.o.device)

    def _norm_rope(self, x: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> None:
        kernels.qk_norm_rope(
            x, self.q_norm, self.k_norm, cos, sin,
            num_heads=heads, num_kv_heads=kv_heads, eps=self.config.rms_norm_eps,
        )  # fmt: skip

    def _mlp(self, attended: Tensor, residual: Tensor, norm: Norm) -> tuple[MatmulInput, Tensor]:
        x, residual = self.post_norm.after(self.o, attended, residual, adds=self.adds)
        return norm.after(self.down, self.gate_up(x), residual, adds=self.adds)

    def forward(
        self, x: MatmulInput, batch: Batch, residual: Tensor, norm: Norm
    ) -> tuple[MatmulInput, Tensor]:
        """Compute the layer for all rows.

        Args:
            x: [T, C], the normalised input, perhaps quantised.
            batch: the batch.
            residual: [T, C], the residual stream, which may be overwritten.
            norm: the norm after the layer.

        Returns:
            The input of the next layer, and the residual stream after this one.
        """
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        qkv = self.qkv(x)
        self._norm_rope(qkv, batch.cos, batch.sin, heads, kv_heads)
        qkv = qkv.view(len(qkv), -1, self.config.head_dim)  # [T, H + 2·KH, D]
        k, v = batch.keys_and_values(self.number, qkv[:, heads:])
        attended = kernels.forest_attention(qkv[:, :heads], k, v, batch.plan, self.scale)
        return self._mlp(attended, residual, norm)

    def forward_last(
        self, x: Tensor, batch: Batch, residual: Tensor, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """Compute the layer for the last-token rows only.

        Args:
            x: [T, C], the normalised input of all rows.
            batch: the batch.
            residual: [N', C], the residual stream of the last-token rows, which may be overwritten.
            norm: the final norm.

        Returns:
            The final states [N', C], and the residual stream [N', C] after this layer.
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
        states, residual = self._mlp(attended, residual, norm)
        assert isinstance(states, Tensor)  # the final norm does not quantise
        return states, residual
