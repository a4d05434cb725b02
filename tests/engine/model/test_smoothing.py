"""Smoothing: the layer computes the same with less rounding, for every kind of layer and of channel."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lastword import Embedder
from lastword.bench.checkpoint import make_checkpoint
from lastword.kernels import SMOOTHING_LIMIT
from lastword.model import qwen3
from lastword.model.rope import inverse_frequencies
from lastword.model.smoothing import Smoothing, _factors, _ObservedLayer
from lastword.weights import Checkpoint, LayerWeights, ModelConfig, read_config

SHAPES = {
    "plain": {},
    "one layer": {"num_hidden_layers": 1},
    "biased": {"attention_bias": True},
    "wide": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3},
    "few tokens": {"vocab_size": 300},
}


class Opened:
    """A checkpoint whose norms have a few large channels, as trained models have them."""

    def __init__(self, folder: Path, **shape) -> None:
        make_checkpoint(folder, **shape)
        self.config: ModelConfig = read_config(folder)
        self.checkpoint = Checkpoint(folder, self.config)
        self.embedding = self.checkpoint.embedding().clone()

    def layer(self, index: int) -> LayerWeights:
        weights = self.checkpoint.layer(index, torch.float32)
        generator = torch.Generator().manual_seed(index)
        factor = 1 + 30 * (torch.rand(len(weights.input_norm), generator=generator) < 0.1)
        return replace(
            weights,
            input_norm=weights.input_norm * factor,
            post_norm=weights.post_norm * factor.flip(0),
        )

    def smoothing(self) -> Smoothing:
        inv_freq = inverse_frequencies(self.config.rope, self.config.head_dim)
        return Smoothing(self.config, self.embedding, inv_freq)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


def run(weights: LayerWeights, config: ModelConfig, smoothing: Smoothing) -> tuple[Tensor, Tensor]:
    """The layer's output and the residual behind its attention, in fp32."""
    residual = torch.randn(64, config.hidden_size, generator=torch.Generator().manual_seed(5))
    x = torch.nn.functional.rms_norm(residual, residual.shape[1:], weights.input_norm, 1e-6)
    return _ObservedLayer(weights, config).forward(x, smoothing._batch, residual), residual


def powers(of: Tensor, over: Tensor) -> Tensor:
    """The factors by which a tensor was multiplied: powers of two within the limits."""
    factors = of / over
    assert (factors.frexp().mantissa == 0.5).all()
    assert factors.log2().abs().max() <= SMOOTHING_LIMIT
    return factors


@pytest.mark.parametrize("shape", SHAPES)
def test_a_smoothed_layer_computes_the_same(shape: str, tmp_path: Path) -> None:
    opened = Opened(tmp_path, **SHAPES[shape])
    smoothing = opened.smoothing()
    for index in range(opened.config.num_hidden_layers):
        before = opened.layer(index)
        after = smoothing.smooth(before)
        exact, found = (run(each, opened.config, smoothing) for each in (before, after))
        for ours, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
        for name in ("qkv_bias", "o", "o_bias", "q_norm", "k_norm"):
            assert getattr(after, name) is getattr(before, name), "unscaled"
        qkv = powers(before.input_norm, after.input_norm)
        mlp = powers(before.post_norm, after.post_norm)
        assert torch.equal(after.qkv, before.qkv * qkv)
        assert torch.equal(after.gate, before.gate * mlp)
        down = powers(after.down, before.down)
        assert torch.equal(down, down[:1].expand_as(down)), "one factor for a channel"
        assert torch.equal(after.up, before.up * mlp / down[0][:, None])
        assert min(len(each.unique()) for each in (qkv, mlp)) > 1
        assert qkv[before.input_norm > 20].min() > qkv[before.input_norm < 2].max()


def test_a_model_always_gets_the_same_factors(opened: Opened) -> None:
    first, again = opened.smoothing(), opened.smoothing()
    for index in range(2):
        pair = [each.smooth(opened.layer(index)) for each in (first, again)]
        assert torch.equal(pair[0].qkv, pair[1].qkv)
        assert torch.equal(pair[0].gate, pair[1].gate)
        assert torch.equal(pair[0].up, pair[1].up)
        assert torch.equal(pair[0].down, pair[1].down)


def test_weights_are_not_changed_in_place(opened: Opened) -> None:
    weights, smoothing = opened.layer(0), opened.smoothing()
    smoothing.smooth(weights)
    again = opened.layer(0)
    for name in ("input_norm", "qkv", "o", "post_norm", "gate", "up", "down"):
        assert torch.equal(getattr(weights, name), getattr(again, name)), name


@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
def test_channels_that_have_no_size_keep_their_scale(value: float) -> None:
    size, weight = torch.tensor([1.0, 16.0, 1.0, 1.0]), torch.ones(3, 4)
    size[2], weight[:, 3] = value, value
    factors = _factors(size, weight)
    assert factors[2:].tolist() == [1, 1]
    assert factors[1] / factors[0] == 4
    assert _factors(torch.full((4,), value), weight).tolist() == [1] * 4, "none has a size"


def test_dead_channels(opened: Opened) -> None:
    """A norm, an input and an output of zeros, and a layer of zeros."""
    weights, smoothing = opened.layer(0), opened.smoothing()
    for tensor in (weights.input_norm, weights.post_norm):
        tensor[4] = 0
    weights.down[:, 7] = 0
    weights.gate[9] = 0
    after = smoothing.smooth(weights)
    assert torch.equal(after.qkv[:, 4], weights.qkv[:, 4])
    assert torch.equal(after.gate[:7, 4], weights.gate[:7, 4])
    assert torch.equal(after.down[:, 9], weights.down[:, 9])
    exact, found = (run(each, opened.config, smoothing) for each in (weights, after))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 * float(exact[0].abs().max()))
    tensors = {name: getattr(weights, name) for name in weights.__slots__}
    empty = LayerWeights(**{k: t if t is None else torch.zeros_like(t) for k, t in tensors.items()})
    after = smoothing.smooth(empty)
    assert all(t is None or not t.any() for t in (getattr(after, k) for k in tensors))


def test_the_first_token_does_not_count(opened: Opened) -> None:
    """Many models give it a few channels that are thousands of times as large."""
    opened.embedding[:, 5] = 1e-3
    usual = opened.smoothing().smooth(opened.layer(0)).input_norm
    opened.embedding[0, 5] = 1e4
    assert torch.equal(opened.smoothing().smooth(opened.layer(0)).input_norm, usual)
    opened.embedding[opened.config.vocab_size // 64, 5] = 1e4
    assert not torch.equal(opened.smoothing().smooth(opened.layer(0)).input_norm, usual)


def test_large_channels_round_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(tmp_path, hidden_size=128, intermediate_size=256)

    class Source:
        """The checkpoint with large channels."""

        def __getattr__(self, name: str):
            return getattr(opened.checkpoint, name)

        def layer(self, index: int, _: torch.dtype) -> LayerWeights:
            return opened.layer(index)

    def encode(quantize: str | None) -> Tensor:
        model = Embedder(
            tmp_path, device="cpu", quantize=quantize, open_checkpoint=lambda *_: Source()
        )
        return model.encode([f"text number {i}, " + "some words " * (i % 9) for i in range(40)])

    def error() -> float:
        return float(1 - (encode("int8") * exact).sum(1).mean())

    exact = encode(None)
    smoothed = error()
    monkeypatch.setattr(Smoothing, "smooth", lambda _, weights: weights)
    plain = error()
    assert 0 < smoothed < 0.5 * plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_int8_is_smoothed(
    dtype: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwen3, "Smoothing", None)
    Embedder(tiny_checkpoint, device="cpu", dtype=dtype)
    with pytest.raises(TypeError):
        Embedder(tiny_checkpoint, device="cpu", quantize="int8")
