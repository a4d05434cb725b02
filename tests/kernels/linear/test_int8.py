"""int8 matmuls: close to fp32, independent of neighbouring rows, and correct for extreme numbers."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels.operations import assert_extreme_rows_are_kept, draw, relative
from torch import Tensor

from lastword import ConfigError
from lastword.kernels import Int8Linear, Int8SwigluLinear, activation_levels, check_int8
from lastword.kernels.linear import int8 as linear_int8

SHAPES = [(1, 64, 64), (2, 96, 7), (7, 64, 200), (129, 1024, 96), (513, 200, 64)]  # T, K_in, K_out


def round_rows(x: Tensor, levels: int) -> Tensor:
    """Round each row to `levels` codes on each side of zero, like int8, in fp64."""
    scale = x.double().abs().amax(1, keepdim=True) / levels
    return (x.double() / scale).round() * scale


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("T", "K_in", "K_out"), SHAPES)
def test_is_the_product_of_rounded_rows(T: int, K_in: int, K_out: int, biased: bool) -> None:
    x, weight = draw(T, K_in), draw(K_out, K_in, seed=1)
    bias = draw(K_out, seed=2) if biased else None
    y = Int8Linear(weight, bias)(x)
    expected = round_rows(x, activation_levels()) @ round_rows(weight, 127).T
    if bias is not None:
        expected += bias
    # a tie may round to either side: one code of one activation
    assert relative(y, expected) < 1e-3
    assert 1e-4 < relative(y, F.linear(x, weight, bias)) < 0.03


def test_swiglu_is_that_of_the_products() -> None:
    x, weights = draw(33, 64), [draw(48, 64, seed=seed) for seed in (1, 2)]
    gate, up = (Int8Linear(weight)(x) for weight in weights)
    assert relative(Int8SwigluLinear(*weights)(x), F.silu(gate) * up) < 1e-6


@pytest.mark.parametrize("layer", [Int8Linear, Int8SwigluLinear])
def test_neighbours_move_no_bit(layer: type) -> None:
    weights = [draw(128, 256, seed=1), draw(128, 256, seed=2)]
    x, run = draw(513, 256), layer(*weights[: 1 + (layer is Int8SwigluLinear)])
    x[3] *= 1e6  # one scale for the whole batch would round all other rows to zero
    x[5] *= 1e-6
    together = run(x)
    for rows in (slice(0, 1), slice(3, 4), slice(4, 6), slice(100, 229)):
        assert torch.equal(run(x[rows].contiguous()), together[rows])
    order = torch.randperm(513, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(x[order]), together[order])


def test_one_scale_for_the_batch_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: every row gets the largest scale of the batch."""
    monkeypatch.setattr(
        linear_int8, "_row_scale", lambda x, levels: (x.abs().amax() / levels).expand(len(x), 1)
    )
    x, run = draw(4, 256), Int8Linear(draw(64, 256, seed=1))
    x[3] *= 1e6
    assert not torch.equal(run(x)[:1], run(x[:1]))


def test_extreme_rows() -> None:
    assert_extreme_rows_are_kept(Int8Linear(draw(64, 96, seed=1)))


def test_no_code_saturates() -> None:
    """With all codes at their limits, sums would overflow 16 bits."""
    K = 4096
    y = Int8Linear(torch.ones(8, K))(torch.ones(3, K))
    assert relative(y, torch.full((3, 8), float(K))) < 1e-6
    assert relative(Int8Linear(-torch.ones(8, K))(torch.ones(3, K)), torch.full((3, 8), -K)) < 1e-6


def test_channels_that_round_badly_stay_in_fp32() -> None:
    x, weight = draw(40, 256), draw(64, 256, seed=1) * 0.02
    weight[10:20, 10:20] += torch.eye(10)  # one large weight per channel
    run = Int8Linear(weight)
    assert run.exact_rows.tolist() == list(range(10, 20))
    y, expected = run(x), F.linear(x, weight)
    assert (y[:, 10:20] - expected[:, 10:20]).abs().max() < 1e-5
    assert relative(y, expected) < 0.02
    assert Int8Linear(draw(64, 256)).exact is None


def test_zero_weights() -> None:
    assert torch.equal(Int8Linear(torch.zeros(8, 64))(draw(3, 64)), torch.zeros(3, 8))


def test_signed_zeros_and_single_numbers() -> None:
    """A row of zeros gives zeros, and the largest number of a row keeps its value on both sides of zero."""
    run = Int8Linear(torch.ones(8, 64))
    x = torch.zeros(3, 64)
    x[1, 5], x[2, 7] = 3.25, -1e-30
    expected = torch.tensor([0.0, 3.25, -1e-30])[:, None].expand(3, 8)
    torch.testing.assert_close(run(x), expected, rtol=1e-6, atol=0)


def test_seven_bits_without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert activation_levels() == 63
    x, weight = draw(9, 256), draw(64, 256, seed=1)
    assert relative(Int8Linear(weight)(x), round_rows(x, 63) @ round_rows(weight, 127).T) < 1e-3


def test_a_machine_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(ConfigError) as caught:
        check_int8()
    error = caught.value
    assert (error.where, error.what) == ("quantize", "int8 is not supported on this machine")
    assert (error.got, error.expected) == (
        "PyTorch with oneDNN for a CPU with DEFAULT",
        "oneDNN and AVX2 or AVX512",
    )
