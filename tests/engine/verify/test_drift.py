"""`lastword verify --quantize`: a correct engine passes on any checkpoint; one with other rounding fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lastword.bench.checkpoint import make_checkpoint
from lastword.cli.main import main
from lastword.kernels import Int8Linear
from lastword.kernels.linear import int8 as linear_int8
from lastword.model import smoothing
from lastword.verify import bounds, rounding, verify
from lastword.weights import locate

SHAPES = {
    "deep": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 14},
    "wide": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2},
    "biased": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "attention_bias": True},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_correct_engine_passes(name: str, tmp_path: Path) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    verdict = verify(make_checkpoint(tmp_path, **heads, **SHAPES[name]), quantize="int8")
    assert verdict.passed, verdict.cause
    assert {check.status for check in verdict.checks} == {"ok"}
    assert_expected_error(verdict)


def test_the_built_in_model_passes() -> None:
    own = ["end token", "prompt text"]  # its tokenizer and prompts are not the family's
    verdict = verify(locate(None).folder, quantize="int8", accept=own)
    assert verdict.passed, verdict.cause
    assert_expected_error(verdict)


def test_a_correct_engine_passes_in_fp8(
    four_layers: Path, known_reference, fp8_on_a_cpu: dict
) -> None:
    verdict = verify(four_layers, **fp8_on_a_cpu)
    assert verdict.passed, verdict.cause
    assert (verdict.quantize, verdict.dtype, verdict.reference) == ("fp8", "bfloat16", "float32")
    assert verdict.layers[2].ours == pytest.approx(verdict.layers[2].theirs, rel=0.15)
    assert verdict.layers[3].ours > 2 * verdict.layers[1].ours, "the first layer is in bfloat16"


def assert_expected_error(verdict) -> None:
    """Check that the engine's error is that of the simple rounding and grows from layer to layer."""
    for layer in verdict.layers[1:]:
        assert layer.ours == pytest.approx(layer.theirs, rel=0.05)
    assert verdict.layers[-1].ours > verdict.layers[1].ours > 1e-3
    assert verdict.figures["min_cosine"] < 1 - 1e-6


def test_too_coarse_codes_are_found(tiny_checkpoint: Path, known_reference, monkeypatch) -> None:
    monkeypatch.setattr(linear_int8, "activation_levels", lambda: 20)
    verdict = verify(tiny_checkpoint, quantize="int8")
    assert verdict.cause.name == "layers"
    assert "after layer 1 of 2" in verdict.cause.detail


def test_a_model_unsuited_to_the_mode(tiny_checkpoint: Path, monkeypatch) -> None:
    """Engine and rounding agree, but both have too few codes for these weights."""
    for module in (linear_int8, rounding):
        monkeypatch.setattr(module, "activation_levels", lambda: 6)
    verdict = verify(tiny_checkpoint, quantize="int8")
    assert verdict.cause.name == "drift"
    assert "this model is not suitable for int8" in verdict.cause.detail
    assert verify(tiny_checkpoint, quantize="int8", accept=["drift", "ranking"]).passed


def test_the_report_states_mode_and_quantisation_error(
    tiny_checkpoint: Path, known_reference, capfd
) -> None:
    assert main(["verify", str(tiny_checkpoint), "--quantize", "int8"]) == 0
    out, _ = capfd.readouterr()
    assert "in float32, matmuls in int8; reference: transformers in float64" in out
    assert "matmuls rounded to int8" in out
    assert "drift          int8: cosine 0.99" in out
    assert main(["verify", str(tiny_checkpoint), "--quantize", "int8", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["quantize"] == "int8"
    assert {"mean_cosine", "min_cosine", "top10_overlap"} <= found["figures"].keys()
    assert all({"layer", "ours", "theirs", "allowed"} == layer.keys() for layer in found["layers"])


def test_an_unquantised_run_has_no_drift_check(tiny_checkpoint: Path, known_reference) -> None:
    verdict = verify(tiny_checkpoint)
    assert verdict.quantize is None
    assert "drift" not in {check.name for check in verdict.checks}


def test_the_simple_rounding_equals_the_engines() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(256, 40)
    linear.weight.data = torch.randn(40, 256, generator=generator) * 0.02
    linear.weight.data[3, 5] = 1.0  # a channel that rounds badly
    parent = nn.Sequential(linear, nn.ReLU())
    x = torch.randn(7, 256, generator=generator)
    engine = Int8Linear(linear.weight.data, linear.bias.data)
    rounding.quantize_layer(parent, "int8")
    assert parent[0].exact_rows.tolist() == [3]
    assert (parent[0](x) - engine(x)).abs().max() < 1e-2 * (engine(x).abs().max())


def test_the_simple_factors_are_the_engines(tmp_path: Path, monkeypatch) -> None:
    """On a model whose channels differ in size, in every layer and for every group of linear layers."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    folder = make_checkpoint(tmp_path / "model", **heads, **SHAPES["wide"], attention_bias=True)
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, tensor in weights.items():
        if name.endswith(("layernorm.weight", "up_proj.weight")):
            tensor[:: len(tensor) // 8] *= 8
    save_file(weights, path)
    seen: dict[object, list[torch.Tensor]] = {smoothing: [], rounding: []}
    for module, found in seen.items():
        monkeypatch.setattr(module, "_factors", noted(module._factors, found.append))
    verdict = verify(folder, quantize="int8")
    assert verdict.passed, verdict.cause
    assert_expected_error(verdict)
    assert len(seen[smoothing]) == len(seen[rounding]) == 2 * 3
    for ours, theirs in zip(seen[smoothing], seen[rounding], strict=True):
        assert len(ours.unique()) > 2
        # where the exponent lies between two integers, a rounding error decides
        assert (ours != theirs).float().mean() < 0.01


def noted(true: Callable[..., torch.Tensor], note: Callable[[torch.Tensor], None]):
    def measure(*args: torch.Tensor) -> torch.Tensor:
        note(found := true(*args))
        return found

    return measure


def test_quantised_bounds_are_wider_than_unquantised_ones() -> None:
    plain = bounds.bounds_of(torch.float32, None)
    assert bounds.bounds_of(torch.float32, "int8").layer_limit(0.02) == 0.04 > plain.layer
    assert plain.neighbour_limit(0.5) == 1e-5
    assert bounds.bounds_of(torch.float32, "int8").neighbour_limit(0.02) == 0.02
