"""Prepare a layer's weights for int8: move the scale of large activation channels into the weights.

Rounding to int8 gives each row of activations one scale, so a few large channels leave few codes for the others.
Smoothing divides a channel by a factor and multiplies the weights that read it by the same factor, which does not
change the result. The factors are powers of two, so both steps are exact. They are chosen from the activations of a
forward over a few tokens while the model is loaded. This is SmoothQuant (arXiv:2211.10438) with each channel's root
mean square in place of its maximum.

The output projection is not smoothed. Its inputs are weighted sums of values, and several query heads share each value
head, so one factor on a channel of the values would have to suit several input channels.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lastword import kernels
from lastword.batching.forest import plan_forests
from lastword.batching.packing import ModelInputs
from lastword.kernels import SMOOTHING_LIMIT, SMOOTHING_SHARE, SMOOTHING_TOKENS
from lastword.kernels.caller_settings import CPU, default_settings
from lastword.model.layer import Batch, Layer
from lastword.weights import LayerWeights, ModelConfig


class _ObservedLayer(Layer):
    """An fp32 layer whose linear layers measure the root mean square (RMS) of each input channel."""

    qkv: kernels.ObservedLinear
    gate_up: kernels.ObservedSwigluLinear
    down: kernels.ObservedLinear

    def __init__(self, weights: LayerWeights, config: ModelConfig) -> None:
        # -1 is no layer's number. With its own number, the last layer would compute only last-token rows.
        super().__init__(weights, config, -1, quantize="observe")


class Smoothing:
    """Smooths the layers of one model, in order. A layer's inputs are measured with all earlier layers in fp32.

    Args:
        config: the model's config.
        embedding: the token embeddings [V, C], on the CPU.
        inv_freq: [D/2], fp32, the RoPE frequencies.
    """

    def __init__(self, config: ModelConfig, embedding: Tensor, inv_freq: Tensor) -> None:
        self._config = config
        # Tokens spread evenly over the vocabulary; which ones they are matters little.
        ids = [i * config.vocab_size // SMOOTHING_TOKENS for i in range(SMOOTHING_TOKENS)]
        (forest,) = plan_forests([ids], SMOOTHING_TOKENS)
        inputs = ModelInputs.of(forest, CPU)
        factor = config.rope.attention_factor
        with default_settings():
            cos, sin = kernels.rope_tables(inputs.positions, inv_freq, factor)
        self._batch = Batch(inputs.plan, cos, sin, inputs.final_rows)
        self._residual = embedding.index_select(0, inputs.ids).float()

    @torch.no_grad()
    def smooth(self, weights: LayerWeights) -> LayerWeights:
        """Return the next layer's smoothed weights, with which int8 has smaller rounding errors.

        Args:
            weights: the weights of the layer, fp32, on the CPU.
        """
        layer = _ObservedLayer(weights, self._config)
        with default_settings():
            x = kernels.rms_norm(self._residual, weights.input_norm, self._config.rms_norm_eps)
            self._residual += layer.forward(x, self._batch, self._residual)
        qkv = _factors(layer.qkv.input_rms, weights.qkv)
        mlp = _factors(layer.gate_up.input_rms, weights.gate, weights.up)
        down = _factors(layer.down.input_rms, weights.down)
        return replace(
            weights,
            input_norm=weights.input_norm / qkv,
            qkv=weights.qkv * qkv,
            post_norm=weights.post_norm / mlp,
            gate=weights.gate * mlp,
            up=(weights.up * mlp).div_(down[:, None]),  # SwiGLU is linear in the up projection
            down=weights.down * down,
        )


def _factors(input_rms: Tensor, *weights: Tensor) -> Tensor:
    """Return a power of two per input channel, [K_in], near RMS^s / (largest absolute weight of the channel)^(1 − s).

    s is `SMOOTHING_SHARE`. The factors are scaled to a geometric mean near 1, and lie between 2^−n and 2^n with
    n = `SMOOTHING_LIMIT`.

    Args:
        input_rms: [K_in], the RMS of each input channel.
        weights: [K_out, K_in], the weights that read these channels.
    """
    largest = torch.stack([torch.maximum(w.amax(0), -w.amin(0)) for w in weights]).amax(0)
    exponents = SMOOTHING_SHARE * input_rms.log2() - (1 - SMOOTHING_SHARE) * largest.log2()
    # A channel that is always zero, that no weight reads or that is not finite is left as it is.
    used = exponents.isfinite()
    exponents -= exponents[used].mean()
    limited = exponents.round().clamp(-SMOOTHING_LIMIT, SMOOTHING_LIMIT)
    return torch.where(used, limited, 0.0).exp2()
