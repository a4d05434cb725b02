"""Compare the kernels of RMSNorm, QK-norm + RoPE, SwiGLU and row quantisation with their references in fp64."""

import pytest
import torch
from helpers.kernels.operations import assert_close, assert_quantized

from lastword import kernels
from lastword.kernels import cpu, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return made.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [16, 80, 1000, 1024, 2560, 4096, 8192])
@pytest.mark.parametrize("T", [1, 2, 5])
def test_rms_norm(T: int, C: int, dtype: torch.dtype) -> None:
    x, weight = random(T, C, dtype=dtype), random(C, dtype=dtype, seed=1)
    exact = exact_rms_norm(x, weight)
    assert_close(kernels.rms_norm(x, weight, 1e-6), cpu.rms_norm(x, weight, 1e-6), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [16, 80, 1024, 2560])
@pytest.mark.parametrize("T", [1, 3])
def test_add_rms_norm(T: int, C: int, dtype: torch.dtype) -> None:
    x, residual = random(T, C, dtype=dtype), random(T, C, dtype=dtype, seed=1)
    weight = random(C, dtype=dtype, seed=2)
    ours, theirs = residual.clone(), residual.clone()
    out = kernels.add_rms_norm(x, ours, weight, 1e-6)
    on_cpu = cpu.add_rms_norm(x, theirs, weight, 1e-6)
    assert torch.equal(ours, theirs)
    assert_close(out, on_cpu, exact_rms_norm(theirs, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [16, 80, 1024, 2560])
def test_embed_rms_norm(C: int, dtype: torch.dtype) -> None:
    table, weight = random(9, C, dtype=dtype), random(C, dtype=dtype, seed=1)
    ids = torch.tensor([8, 0, 3, 3, 7], dtype=torch.int32)
    residual, out = kernels.embed_rms_norm(ids, table, weight, 1e-6)
    rows, on_cpu = cpu.embed_rms_norm(ids, table, weight, 1e-6)
    assert torch.equal(residual, rows)
    assert_close(out, on_cpu, exact_rms_norm(rows, weight))


def test_embed_rms_norm_of_a_table_as_it_is_stored() -> None:
    """On a CPU the table keeps the dtype of its file, and PyTorch reads it."""
    table, weight = random(9, 80).bfloat16(), random(80, seed=1)
    residual, out = kernels.embed_rms_norm(torch.tensor([8, 0, 3]), table, weight, 1e-6)
    assert torch.equal(residual, table[[8, 0, 3]].float())
    assert_close(out, cpu.rms_norm(residual, weight, 1e-6), exact_rms_norm(residual, weight))


def exact_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return reference.rms_norm(x.double(), weight.double(), 1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns about these inputs
def test_rms_norm_of_nan_inf_zero_and_huge_rows() -> None:
    x = random(5, 80)
    x[0, 3], x[1, 7], x[2], x[3] = torch.nan, torch.inf, 0.0, 1e15
    weight = torch.ones(80)
    assert_close(
        kernels.rms_norm(x, weight, 1e-6),
        cpu.rms_norm(x, weight, 1e-6),
        exact_rms_norm(x, weight),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("H", "KH", "D"), [(1, 1, 32), (4, 2, 64), (6, 3, 32), (16, 2, 128), (5, 0, 64), (0, 8, 32), (2, 2, 80)]
)  # fmt: skip
@pytest.mark.parametrize("T", [1, 7])
def test_qk_norm_rope(T: int, H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    qkv = random(T, (H + 2 * KH) * D, dtype=dtype)
    weights = random(D, dtype=dtype, seed=1), random(D, dtype=dtype, seed=2)
    angles = random(T, D // 2, seed=3) * 100
    cos, sin = angles.cos(), angles.sin()
    ours, theirs, exact = qkv.clone(), qkv.clone(), qkv.double()
    heads = {"num_heads": H, "num_kv_heads": KH, "eps": 1e-6}
    kernels.qk_norm_rope(ours, *weights, cos, sin, **heads)
    cpu.qk_norm_rope(theirs, *weights, cos, sin, **heads)
    wide = [each.double() for each in (*weights, cos, sin)]
    reference.qk_norm_rope(exact, *wide, **heads)
    assert_close(ours, theirs, exact)
    values = slice((H + KH) * D, None)
    assert torch.equal(ours[:, values], qkv[:, values]), "values have moved"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("F", [1, 48, 136, 1023, 1024, 1025, 3072])
@pytest.mark.parametrize("T", [1, 3])
def test_swiglu(T: int, F: int, dtype: torch.dtype) -> None:
    gate_up = random(T, 2 * F, dtype=dtype)
    exact = reference.swiglu(gate_up.double())
    assert_close(kernels.swiglu(gate_up), cpu.swiglu(gate_up), exact)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns about these inputs
def test_swiglu_of_nan_inf_and_extremes() -> None:
    gate_up = torch.tensor(
        [[torch.nan, torch.inf, -torch.inf, 200.0, -200.0, 1.0, 1.0, 2.0, 3.0, 4.0]]
    )
    exact = reference.swiglu(gate_up.double())
    assert_close(kernels.swiglu(gate_up), cpu.swiglu(gate_up), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("F", [48, 136, 1024, 1536])
def test_swiglu_quantize(F: int, dtype: torch.dtype) -> None:
    gate_up = random(3, 2 * F, dtype=dtype)
    gate_up[1] = 0.0
    on_cpu = cpu.swiglu_quantize(gate_up, torch.float8_e4m3fn)
    assert_quantized(kernels.swiglu_quantize(gate_up), on_cpu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [16, 80, 1024, 2560])
def test_add_rms_norm_quantize(C: int, dtype: torch.dtype) -> None:
    x, residual, weight = (
        random(*shape, dtype=dtype, seed=i) for i, shape in enumerate(((3, C), (3, C), (C,)))
    )
    x[1] = -residual[1]  # the sum is zero
    ours, theirs = residual.clone(), residual.clone()
    out = kernels.add_rms_norm_quantize(x, ours, weight, 1e-6)
    on_cpu = cpu.add_rms_norm_quantize(x, theirs, weight, 1e-6, torch.float8_e4m3fn)
    assert torch.equal(ours, theirs)
    assert_quantized(out, on_cpu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [16, 80, 1024, 1536])
def test_quantize_rows(C: int, dtype: torch.dtype) -> None:
    x = random(3, C, dtype=dtype)
    x[1] = 0.0
    x[2] *= 100  # each row has its own scale
    on_cpu = cpu.quantize_rows(x, torch.float8_e4m3fn)
    assert_quantized(kernels.quantize_rows(x), on_cpu)


def test_no_rows() -> None:
    weight = torch.ones(80)
    assert kernels.rms_norm(torch.zeros(0, 80), weight, 1e-6).shape == (0, 80)
    none = torch.zeros(0, dtype=torch.int32)
    both = kernels.embed_rms_norm(none, torch.zeros(3, 80), weight, 1e-6)
    assert [part.shape for part in both] == [(0, 80)] * 2
    assert kernels.swiglu(torch.zeros(0, 96)).shape == (0, 48)
    y, scale = kernels.quantize_rows(torch.zeros(0, 96))
    assert (y.shape, scale.shape) == ((0, 96), (0,))
