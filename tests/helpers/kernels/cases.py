"""A small call of each kernel, which the kernel itself, a mutant of it, PyTorch and the reference can compute."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from helpers.kernels.forest_paths import cpu_plan, one_forest, tables_of
from helpers.kernels.operations import assert_close, assert_quantized

from lastword.kernels import cpu, reference
from lastword.kernels.gpu import (
    final_attention,
    forest_attention,
    qk_norm_rope,
    quantize_rows,
    rms_norm,
    swiglu,
)

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
Operations = Any  # `kernels`, a module of a kernel, `cpu` or `reference`: each has the operation under the same name
Case = Callable[[Operations, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


# 100 columns are two parts of 64, so that the masks matter.
X, RESIDUAL = normal(4, 100) * 0.1, normal(4, 100, seed=1) * 0.1
WEIGHT = normal(100, seed=2) * 0.1 + 1
IDS = torch.tensor([3, 0, 1, 2])
GATE_UP = normal(3, 2 * 1030, seed=3)
# The largest value of a row is in the first part that a program holds, or in the second; and it may be negative.
X[0, 75], X[2, 10], GATE_UP[0, [1028, 1030 + 1028]] = 2.0, -2.0, 8.0
# 9 + 1 heads are more than one program takes, and fewer than two.
QKV, HEAD_WEIGHTS = normal(5, (9 + 2) * 32, seed=4) * 0.1, (normal(32, seed=5), normal(32, seed=6))
ANGLES = torch.arange(5)[:, None] * torch.linspace(0.1, 1.0, 16)
EPS, SCALE = 1e-3, 32**-0.5
# Ancestors, segments of several blocks of keys, and (LONG) paths long enough to be split.
TEXTS = [
    [7] * 24 + [1] * 90,
    [7] * 24 + [2] * 30 + [5] * 9,
    [7] * 24 + [2] * 30 + [6],
    [3] * 5,
    [4] * 70,
]
LONG = [[1] * 700 + [2] * 300, [1] * 700 + [3] * 9]


def norm(ops: Operations, wide: Callable) -> torch.Tensor:
    return ops.rms_norm(wide(X), wide(WEIGHT), EPS)


def added_norm(ops: Operations, wide: Callable) -> torch.Tensor:
    """The normalised rows, and below them the new residual."""
    residual = wide(RESIDUAL).clone()
    return torch.cat([ops.add_rms_norm(wide(X), residual, wide(WEIGHT), EPS), residual])


def embedded_norm(ops: Operations, wide: Callable) -> torch.Tensor:
    return torch.cat(ops.embed_rms_norm(IDS, wide(X), wide(WEIGHT), EPS))


def rope(ops: Operations, wide: Callable) -> torch.Tensor:
    qkv = wide(QKV).clone()
    # Tables are in fp32 in every dtype but that of the reference.
    tables = (
        each.to(torch.promote_types(qkv.dtype, torch.float32))
        for each in (ANGLES.cos(), ANGLES.sin())
    )
    weights = (wide(each) for each in HEAD_WEIGHTS)
    ops.qk_norm_rope(qkv, *weights, *tables, num_heads=9, num_kv_heads=1, eps=EPS)
    return qkv


def gate(ops: Operations, wide: Callable) -> torch.Tensor:
    return ops.swiglu(wide(GATE_UP))


def attention(name: str, texts: list[list[int]], ops: Operations, wide: Callable) -> torch.Tensor:
    forest = one_forest(texts)
    plan: Any = cpu_plan(forest)
    rows = normal(forest.tokens_computed, 4 + 2 * 2, 32, seed=7)
    q, k, v = rows[:, :4] * 2, rows[:, 4:6], rows[:, 6:]
    if name == "final_attention":
        q = q[forest.final_rows].contiguous()
    tables = plan if ops in (cpu, reference) else tables_of(plan, q, k)
    return getattr(ops, name)(wide(q), wide(k), wide(v), tables, SCALE)


CASES: dict[str, tuple[ModuleType, Case]] = {
    "rms_norm": (rms_norm, norm),
    "add_rms_norm": (rms_norm, added_norm),
    "embed_rms_norm": (rms_norm, embedded_norm),
    "qk_norm_rope": (qk_norm_rope, rope),
    "swiglu": (swiglu, gate),
    "forest_attention": (forest_attention, partial(attention, "forest_attention", TEXTS)),
    "final_attention": (final_attention, partial(attention, "final_attention", TEXTS)),
    "final_attention, split": (final_attention, partial(attention, "final_attention", LONG)),
}


def quantized_norm(ops: Operations) -> tuple[torch.Tensor, torch.Tensor]:
    return ops.add_rms_norm_quantize(X, RESIDUAL.clone(), WEIGHT, EPS, FP8)


def with_a_row_of_zeros(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:1], torch.zeros_like(x[:1]), x[2:]])


QUANTIZING: dict[str, tuple[ModuleType, Callable[[Operations], tuple[torch.Tensor, torch.Tensor]]]] = {
    "add_rms_norm_quantize": (rms_norm, quantized_norm),
    "quantize_rows": (quantize_rows, lambda ops: ops.quantize_rows(with_a_row_of_zeros(X), FP8)),
    "swiglu_quantize": (swiglu, lambda ops: ops.swiglu_quantize(with_a_row_of_zeros(GATE_UP), FP8)),
}  # fmt: skip


def check(case: str, ops: Operations) -> None:
    """Compare the results of `ops` with the fp64 reference; the CPU implementation's error sets the tolerance."""
    run = CASES[case][1]
    exact = run(reference, torch.Tensor.double)
    assert_close(run(ops, torch.Tensor.contiguous), run(cpu, torch.Tensor.contiguous), exact)


def check_quantized(case: str, ops: Operations) -> None:
    """Compare fp8 codes and scales of `ops` with the CPU implementation's."""
    run = QUANTIZING[case][1]
    assert_quantized(run(ops), run(cpu))
