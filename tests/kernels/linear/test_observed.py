"""Linear layers that measure their input: exact products, and channels without the first row."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels.operations import draw, relative

from lastword.kernels import ObservedLinear, ObservedSwigluLinear


@pytest.mark.parametrize("biased", [False, True])
def test_is_the_exact_product(biased: bool) -> None:
    x, weight = draw(9, 96), draw(40, 96, seed=1)
    bias = draw(40, seed=2) if biased else None
    assert torch.equal(ObservedLinear(weight, bias)(x), F.linear(x, weight, bias))


def test_swiglu_is_that_of_the_product() -> None:
    x, gate, up = draw(9, 64), draw(48, 64, seed=1), draw(48, 64, seed=2)
    expected = F.silu(F.linear(x, gate)) * F.linear(x, up)
    assert relative(ObservedSwigluLinear(gate, up)(x), expected) < 1e-6


@pytest.mark.parametrize("layer", [ObservedLinear, ObservedSwigluLinear])
def test_measures_the_last_input_without_its_first_row(layer: type) -> None:
    weights = [draw(48, 64, seed=1), draw(48, 64, seed=2)]
    x, run = draw(9, 64), layer(*weights[: 1 + (layer is ObservedSwigluLinear)])
    x[:, 3] *= 50
    x[:, 5] = 0
    x[0] = 1e9
    run(draw(4, 64, seed=7))
    run(x)
    expected = x[1:].double().square().mean(0).sqrt()
    assert run.input_rms.shape == (64,)
    torch.testing.assert_close(run.input_rms.double(), expected, rtol=1e-5, atol=0)
    assert run.input_rms[5] == 0
