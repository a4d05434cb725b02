"""fp8 matmuls on a CPU: rounded rows, scales per row and channel, and the calls of the vendor library."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels.operations import assert_extreme_rows_are_kept, draw, relative
from torch import Tensor

from lastword import ConfigError, DeviceError
from lastword.kernels import (
    Fp8Linear,
    Fp8SwigluLinear,
    check_fp8,
    fp8_format,
    quantize_rows,
    swiglu_quantize,
)
from lastword.kernels.linear import fp8 as linear_fp8

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FORMATS = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
SHAPES = [(1, 64, 64), (2, 96, 16), (7, 64, 208), (129, 1024, 96)]  # T, K_in, K_out


def round_rows(x: Tensor) -> Tensor:
    """Round each row like e4m3, in fp64: 4 significant bits, and steps of 2^-9 below 2^-6."""
    scale = x.double().abs().amax(1, keepdim=True) / 448
    y = x.double() / scale
    step = 2.0 ** (y.abs().clamp_min(2.0**-6).log2().floor() - 3)
    return (y / step).round() * step * scale


def sum_as_an_h100(a: Tensor, b: Tensor) -> Tensor:
    """Multiply codes as Hopper's tensor cores do by published measurements, in fp64.

    32 products at a time are added to the sum; each is cut 13 bits below the leading bit of the largest of them.
    """
    total = torch.zeros(len(a), b.shape[1], dtype=torch.float64)
    for k in range(0, a.shape[1], 32):
        products = a[:, k : k + 32, None] * b[None, k : k + 32]
        largest = torch.maximum(products.abs().amax(1), total.abs()).clamp_min(1e-300)
        unit = 2.0 ** (largest.log2().floor() - 13)
        total = ((products / unit[:, None]).trunc().sum(1) + (total / unit).trunc()) * unit
    return total


@pytest.mark.parametrize(
    ("K", "expected"), [(256, 2.1e-4), (768, 4.4e-4), (3072, 1.1e-3), (12_288, 2.6e-3)]
)
def test_the_accumulation_of_an_h100_errs_less_than_rounding(K: int, expected: float) -> None:
    x, weight = draw(48, K), draw(48, K, seed=1)
    codes, scales = quantize_rows(x, torch.float8_e4m3fn)
    layer = Fp8Linear(weight)
    weights = layer.weight.double()
    exact = codes.double() @ weights.t()
    emulated = sum_as_an_h100(codes.double(), weights.t().contiguous())
    assert relative(emulated, exact) == pytest.approx(expected, rel=0.1)
    ours = layer((codes, scales)).double() / scales[:, None].double() / layer.scale.double()
    assert relative(ours, exact) < 1e-6
    assert relative(layer(x), x.double() @ weight.double().t()) == pytest.approx(3.7e-2, rel=0.1)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("T", "K_in", "K_out"), SHAPES)
def test_is_the_product_of_rounded_rows(T: int, K_in: int, K_out: int, biased: bool) -> None:
    x, weight = draw(T, K_in), draw(K_out, K_in, seed=1)
    bias = draw(K_out, seed=2) if biased else None
    y = Fp8Linear(weight, bias)(x)
    expected = round_rows(x) @ round_rows(weight).T
    if bias is not None:
        expected += bias
    assert relative(y, expected) < 2e-3  # a tie may round to either side
    assert 0.01 < relative(y, F.linear(x, weight, bias)) < 0.06


def test_bfloat16_is_rounded_once() -> None:
    x, weight = draw(9, 64, dtype=torch.bfloat16), draw(48, 64, seed=1, dtype=torch.bfloat16)
    y = Fp8Linear(weight)(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, Fp8Linear(weight.float())(x.float()).to(torch.bfloat16))


def test_rows_quantised_before_give_the_same() -> None:
    x, run = draw(9, 64), Fp8Linear(draw(48, 64, seed=1))
    assert torch.equal(run(quantize_rows(x)), run(x))


def test_swiglu_is_that_of_the_products() -> None:
    x, gate, up = draw(33, 64), draw(48, 64, seed=1), draw(48, 64, seed=2)
    y, scale = Fp8SwigluLinear(gate, up)(x)
    expected, expected_scale = swiglu_quantize(Fp8Linear(torch.cat([gate, up]))(x))
    assert torch.equal(y.float(), expected.float())
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("fp8", FORMATS)
def test_neighbours_move_no_code(fp8: torch.dtype) -> None:
    x = draw(513, 256)
    x[3] *= 1e6  # one scale for the whole batch would round all other rows to zero
    x[5] *= 1e-6
    y, scale = quantize_rows(x, fp8)
    for rows in (slice(0, 1), slice(3, 6), slice(100, 229)):
        alone, alone_scale = quantize_rows(x[rows], fp8)
        assert torch.equal(alone.float(), y[rows].float())
        assert torch.equal(alone_scale, scale[rows])
    together = Fp8Linear(draw(128, 256, seed=1))(x)
    alone = Fp8Linear(draw(128, 256, seed=1))(x[4:6])
    assert relative(alone, together[4:6]) < 1e-6


def test_one_scale_for_the_batch_would_be_seen() -> None:
    """With one scale for the batch, a mutant, the other rows next to a large one lose all their bits."""
    x = draw(4, 256)
    x[3] *= 1e6
    scale = x.abs().max() / 448
    wrong = (x / scale).to(torch.float8_e4m3fn).float() * scale
    y, scales = quantize_rows(x)
    assert relative(y.float() * scales[:, None], x) < 0.04
    assert relative(wrong[:3], x[:3]) > 0.5


def test_extreme_rows() -> None:
    assert_extreme_rows_are_kept(Fp8Linear(draw(64, 96, seed=1)))


@pytest.mark.parametrize("fp8", FORMATS)
def test_the_largest_value_fills_the_format(fp8: torch.dtype) -> None:
    """Dividing by the scale may give slightly more than the largest number, which must not become a NaN."""
    x = draw(5000, 16) * 10.0 ** draw(5000, 1, seed=1)
    y, _ = quantize_rows(x, fp8)
    assert y.float().isfinite().all()
    assert torch.equal(y.float().abs().amax(1), torch.full((5000,), torch.finfo(fp8).max))


def test_zero_weights_and_no_rows() -> None:
    assert torch.equal(Fp8Linear(torch.zeros(16, 64))(draw(3, 64)), torch.zeros(3, 16))
    assert Fp8Linear(torch.zeros(16, 64))(draw(0, 64)).shape == (0, 16)


@pytest.mark.parametrize("shape", [(64, 40), (40, 64)])
def test_widths_are_multiples_of_16(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        Fp8Linear(torch.zeros(shape))
    assert caught.value.what == "fp8 needs widths in multiples of 16"
    assert caught.value.got == f"a weight of shape {list(shape)}"


# The calls of the vendor library, without a GPU.


@pytest.mark.parametrize("T", [1, 7])
def test_the_library_takes_the_call(T: int) -> None:
    """Use PyTorch's row-wise matmul on a CPU in place of the one on a GPU."""
    weight = draw(48, 64, seed=1, dtype=torch.bfloat16)
    run = Fp8Linear(weight)
    codes, scale = quantize_rows(draw(T, 64, dtype=torch.bfloat16))
    args = codes, run.weight.t(), scale[:, None], run.scale, torch.bfloat16
    assert relative(linear_fp8._row_wise_product(*args), linear_fp8._product(*args)) < 4e-3


@pytest.mark.parametrize("T", [1, 7])
def test_the_layout_is_that_of_a_gpu(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own rules for the matmul on a GPU accept our layout, checked with tensors without data."""
    monkeypatch.setattr(torch._meta_registrations, "device_hint", lambda tensor: "cuda")
    with torch.device("meta"):
        codes, weight = (torch.empty(n, 64, dtype=torch.float8_e4m3fn) for n in (T, 48))
        scales = torch.empty(T)[:, None], torch.empty(48)[None]
    y = linear_fp8._row_wise_product(codes, weight.t(), *scales, torch.bfloat16)
    assert (y.shape, y.dtype) == ((T, 48), torch.bfloat16)
    with pytest.raises(RuntimeError, match="mat2 must be col_major"):
        linear_fp8._row_wise_product(codes, weight.t().contiguous(), *scales, torch.bfloat16)


# Devices.


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Pretend to be on a GPU of this compute capability, or gfx name."""

    def pretend(found: tuple[int, int] | str) -> None:
        amd = isinstance(found, str)
        monkeypatch.setattr(torch.version, "hip", "7.0" if amd else None)
        properties = SimpleNamespace(gcnArchName=f"{found}:sramecc+:xnack-")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
        fp8_format.cache_clear()

    yield pretend
    fp8_format.cache_clear()


@pytest.mark.parametrize("found", [(8, 9), (9, 0), (10, 0), (12, 0), "gfx942", "gfx950"])
def test_devices_with_fp8(found: tuple[int, int] | str, gpu) -> None:
    gpu(found)
    check_fp8(GPU)
    expected = torch.float8_e4m3fnuz if found == "gfx942" else torch.float8_e4m3fn
    assert fp8_format(GPU) == expected
    assert fp8_format(CPU) == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("found", "got"), [((8, 6), "compute capability 8.6"), ("gfx90a", "gfx90a")]
)
def test_devices_without_fp8(found: tuple[int, int] | str, got: str, gpu) -> None:
    gpu(found)
    with pytest.raises(DeviceError) as caught:
        check_fp8(GPU)
    error = caught.value
    assert (error.where, error.what) == ("quantize", "fp8 is not supported on 'cuda'")
    assert (error.got, error.remedy) == (got, "Leave quantize out to compute without quantisation.")
    assert error.expected == "compute capability 8.9 or later, gfx942 or gfx950"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch):
    """Run PyTorch's row-wise matmul on a CPU, but refuse fewer rows than a minimum."""
    multiply = linear_fp8._row_wise_product

    def refuse(least: int) -> None:
        def product(a: Tensor, *others: object) -> Tensor:
            if len(a) < least:
                raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED when calling\nmore")
            return multiply(a, *others)

        monkeypatch.setattr(linear_fp8, "_row_wise_product", product)
        monkeypatch.setattr(linear_fp8, "_product", product)

    return refuse


@pytest.mark.parametrize(("least", "rows"), [(0, 1), (2, 272), (257, 272)])
def test_few_rows_get_zeros_where_the_library_refuses_them(least: int, rows: int, library) -> None:
    run, x = (
        Fp8Linear(draw(48, 64, seed=1, dtype=torch.bfloat16)),
        draw(3, 64, dtype=torch.bfloat16),
    )
    expected = run(x)
    library(least)
    run.least_rows = linear_fp8._least_rows(run.weight, run.scale, run.dtype)
    assert run.least_rows == rows
    assert relative(run(x), expected) < 4e-3
    assert run(x[:0]).shape == (0, 48)


class OnGpu(torch.Tensor):
    """A weight that claims to be on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(("least", "rows"), [(0, 1), (257, 272)])
def test_a_weight_on_a_gpu_is_tried_at_load(least: int, rows: int, library) -> None:
    library(least)
    weight = draw(48, 64, dtype=torch.bfloat16)
    assert Fp8Linear(weight).least_rows == 1
    assert Fp8Linear(weight.as_subclass(OnGpu)).least_rows == rows


def test_a_product_that_the_library_refuses(library) -> None:
    library(1000)
    with pytest.raises(DeviceError) as caught:
        Fp8Linear(draw(48, 64, dtype=torch.bfloat16).as_subclass(OnGpu))
    assert caught.value.what == "fp8 matmuls with row scales are not supported on 'cpu'"
    assert caught.value.got == "'CUBLAS_STATUS_NOT_SUPPORTED when calling' from PyTorch"


def test_no_fp8_on_a_cpu() -> None:
    with pytest.raises(ConfigError) as caught:
        check_fp8(CPU)
    error = caught.value
    assert (error.where, error.what) == ("quantize", "fp8 is for GPUs")
    assert (error.got, error.expected) == ("device 'cpu'", "'cuda'")
