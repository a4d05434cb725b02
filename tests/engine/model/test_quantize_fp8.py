"""`quantize="fp8"`: the quantised layers, the quantisation error, and that it needs a GPU.

The option is refused on a CPU, so these tests construct the model directly; it runs on the CPU implementations.
"""

from pathlib import Path

import pytest
import torch
from helpers.messages import refusal
from helpers.transformers_reference import load_ours, our_states, unit
from torch import Tensor

from lastword import ConfigError, model_info
from lastword.bench.checkpoint import make_checkpoint
from lastword.kernels import Fp8Linear, Fp8SwigluLinear
from lastword.model.qwen3 import Model
from lastword.model_info import ModelInfo
from lastword.runtime.device import check_quantize, quantize_identity

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TOKENS = [
    [i % 250 for i in range(7 * n, 7 * n + length)]
    for n, length in enumerate((3, 9, 40, 90, 41) * 4)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("fp8") / "model",
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
    )


def vectors(folder: Path, quantize: str | None, tokens: list[list[int]] = TOKENS) -> Tensor:
    """A model with four channels of the residual stream 30 times as large as the others."""
    model = load_ours(folder, quantize)
    model.embedding = model.embedding.clone()
    model.embedding[:, ::64] *= 30
    return unit(our_states(model, tokens)[0])


def test_the_quantisation_error_is_small_but_not_zero(folder: Path) -> None:
    cosine = (vectors(folder, None) * vectors(folder, "fp8")).sum(1)
    assert cosine.mean() >= 0.999
    assert cosine.min() >= 0.995
    assert cosine.max() < 1 - 1e-6, "nothing was quantised"


def test_other_texts_change_a_vector_less_than_the_mode_does(folder: Path) -> None:
    together = vectors(folder, "fp8")
    alone = torch.cat([vectors(folder, "fp8", [ids]) for ids in TOKENS[:5]])
    error = (together - vectors(folder, None)).abs().max()
    assert (together[:5] - alone).abs().max() <= error


def test_first_and_last_layer_are_not_quantised(folder: Path) -> None:
    first, *between, last = load_ours(folder, "fp8").layers
    assert len(between) == 2
    for layer in between:
        assert {type(each) for each in (layer.qkv, layer.o, layer.down)} == {Fp8Linear}
        assert type(layer.gate_up) is Fp8SwigluLinear
        assert layer.down.weight.dtype == torch.float8_e4m3fn
    for layer in (first, last):
        assert not any(
            isinstance(each, Fp8Linear | Fp8SwigluLinear) for each in vars(layer).values()
        )


def test_with_two_layers_nothing_is_quantised(tiny_checkpoint: Path) -> None:
    plain, fp8 = (our_states(load_ours(tiny_checkpoint, mode), TOKENS)[0] for mode in (None, "fp8"))
    assert torch.equal(plain, fp8)


def test_norm_and_swiglu_quantise_in_one_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the attention output is quantised in a pass of its own: once per quantised layer."""
    from lastword.kernels.linear import fp8

    calls = []
    true = fp8.quantize_rows
    monkeypatch.setattr(fp8, "quantize_rows", lambda *args: calls.append(1) or true(*args))
    our_states(load_ours(folder, "fp8"), TOKENS[:1])
    assert len(calls) == 2


def test_hidden_states_are_observed(folder: Path) -> None:
    plain, fp8 = (our_states(load_ours(folder, mode), TOKENS)[1] for mode in (None, "fp8"))
    for layer, (a, b) in enumerate(zip(plain, fp8, strict=True)):
        error = float((a - b).norm() / a.norm())
        assert (error == 0) == (layer == 0)
        assert error < 0.1


@pytest.mark.parametrize(
    ("device", "dtype", "what", "got"),
    [
        (CPU, torch.float32, "fp8 is for GPUs", "device 'cpu'"),
        (GPU, torch.float32, "fp8 needs dtype bfloat16", "dtype 'float32'"),
    ],
)
def test_refused(device, dtype, what: str, got: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with refusal(ConfigError, where="quantize", what=what, got=got):
        check_quantize("fp8", device, dtype)
    assert check_quantize("fp8", GPU, torch.bfloat16) == "fp8"


def test_a_model_without_middle_layers_is_refused(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_info, "check_quantize", lambda quantize, *_: quantize)
    with refusal(ConfigError, where="quantize", got="a model with 2 layers", expected="at least 3"):
        ModelInfo(tiny_checkpoint, device="cpu", dtype="bfloat16", quantize="fp8")


def test_the_run_fingerprint_has_the_format() -> None:
    assert quantize_identity("fp8", CPU) == ["fp8", "torch.float8_e4m3fn"]
    assert quantize_identity(None, CPU) is None


def test_biases_and_yarn_layouts_load(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32}
    folder = make_checkpoint(tmp_path, attention_bias=True, **sizes)
    plain, fp8 = (unit(our_states(load_ours(folder, mode), TOKENS)[0]) for mode in (None, "fp8"))
    assert 0.99 < (plain * fp8).sum(1).min() < 1 - 1e-6


def test_odd_widths_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, hidden_size=64, intermediate_size=88, num_hidden_layers=3)
    with pytest.raises(ConfigError, match="fp8 needs widths in multiples of 16"):
        load_ours(folder, "fp8")


def test_each_weight_takes_one_byte(folder: Path) -> None:
    model: Model = load_ours(folder, "fp8")
    gate_up = model.layers[1].gate_up.linear
    assert gate_up.weight.nbytes == 2 * 768 * 256
    assert gate_up.scale.shape == (1, 2 * 768)
