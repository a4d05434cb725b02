"""fp8 on the device: row kernels and the library's matmul against PyTorch's own, and a whole model's drift."""

from pathlib import Path

import pytest
import torch

from lastword import Embedder, kernels
from lastword.bench.checkpoint import make_checkpoint
from lastword.bench.shapes import SIZES
from lastword.errors import LastwordError
from lastword.kernels import Fp8Linear, cpu
from lastword.runtime.device import check_quantize
from lastword.verify import verify

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def needs_fp8() -> None:
    try:
        check_quantize("fp8", GPU, torch.bfloat16)
    except LastwordError as error:
        pytest.skip(str(error))


def make(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(GPU).manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, device=GPU).to(torch.bfloat16)


def assert_quantized(ours: tuple, theirs: tuple) -> None:
    """Equal scales, and codes at most a step apart, where a tie or the last bit of a norm fell the other way."""
    (y, scale), (plain, plain_scale) = ours, theirs
    assert torch.allclose(scale, plain_scale, rtol=1e-5)
    assert y.dtype == plain.dtype
    step = (y.float() - plain.float()).abs()
    assert bool((step <= plain.float().abs() / 7 + 2**-9).all())
    assert float((step > 0).float().mean()) < 0.01


@pytest.mark.parametrize("model", ["0.6B", "4B", "8B"])
@pytest.mark.parametrize("T", [1, 2, 1023])
def test_row_kernels(T: int, model: str) -> None:
    C, F, _, H, _, D = SIZES[model]
    fp8 = kernels.fp8_format(GPU)
    x, residual, weight = make(T, C), make(T, C, seed=1), make(C)
    ours, theirs = residual.clone(), residual.clone()
    out = kernels.add_rms_norm_quantize(x, ours, weight, 1e-6, fp8)
    assert_quantized(out, cpu.add_rms_norm_quantize(x, theirs, weight, 1e-6, fp8))
    assert torch.equal(ours, theirs)
    gate_up = make(T, 2 * F)
    assert_quantized(kernels.swiglu_quantize(gate_up, fp8), cpu.swiglu_quantize(gate_up, fp8))
    attended = make(T, H * D)
    attended[0] = 0
    assert_quantized(kernels.quantize_rows(attended, fp8), cpu.quantize_rows(attended, fp8))


@pytest.mark.parametrize("model", ["0.6B", "4B", "8B"])
@pytest.mark.parametrize("T", [1, 2, 17, 1023, 4096])
def test_the_matmul_is_that_of_the_quantised_numbers(T: int, model: str) -> None:
    """Sums in fewer bits than fp32 (`_FAST_ACCUM`) must stay well under the 4 % of the rounding to fp8.

    Sums that only grow lose what lies below the largest term's bits: about K_in / 16 terms of 2^-13 at worst.
    """
    C, F, *_ = SIZES[model]
    for K_in, K_out in ((C, 2 * F), (F, C)):
        x, weight = make(T, K_in), make(K_out, K_in, seed=1)
        y = Fp8Linear(weight)(x).float()
        (a, a_scale), (b, b_scale) = (
            cpu.quantize_rows(each, kernels.fp8_format(GPU)) for each in (x, weight)
        )
        exact = (a.double() @ b.double().T) * a_scale[:, None] * b_scale
        assert float((y - exact).norm() / exact.norm()) < 5e-3
        one_sided = Fp8Linear(weight.abs())(x.abs()).float()
        exact = (a.double().abs() @ b.double().abs().T) * a_scale[:, None] * b_scale
        assert float((one_sided / exact - 1).abs().max()) < 2e-2 + 2.5e-5 * K_in


def test_a_row_depends_on_no_other() -> None:
    x, run = make(513, 1024), Fp8Linear(make(3072, 1024, seed=1))
    together = run(x).float()
    x[5:] *= 1e4
    assert torch.allclose(run(x)[:5].float(), together[:5], rtol=1e-2, atol=1e-2)
    assert torch.allclose(run(x[:5].contiguous()).float(), together[:5], rtol=1e-2, atol=1e-2)


def test_damaged_rows_stay_damaged() -> None:
    x = make(4, 1024)
    x[0], x[1, 3], x[2, 3] = 0, torch.nan, torch.inf
    y = Fp8Linear(make(256, 1024, seed=1))(x)
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    assert not y[1:3].isfinite().any()
    assert y[3].isfinite().all()


def test_a_whole_model_drifts_as_the_plain_rounding(tmp_path: Path) -> None:
    """The 0.6B shape, cut to 8 layers: 28 random ones drift more than a trained model's."""
    hidden, width, _, H, KH, D = SIZES["0.6B"]
    folder = make_checkpoint(
        tmp_path, hidden_size=hidden, intermediate_size=width, num_hidden_layers=8, num_attention_heads=H,
        num_key_value_heads=KH, head_dim=D, dtype=torch.bfloat16,
    )  # fmt: skip
    texts = [f"text number {i}, " + "some words of it " * (i % 9) for i in range(60)]
    exact, fp8 = (
        Embedder(folder, device=GPU, quantize=mode).encode(texts) for mode in (None, "fp8")
    )
    cosine = (exact * fp8).sum(1)
    assert 0.99 <= cosine.mean() < 1 - 1e-6
    verdict = verify(folder, device="cuda", quantize="fp8")
    assert verdict.passed, verdict.cause
