"""Arguments for every operation, comparisons of results, and new memory filled with NaN to find unwritten elements."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.kernels.forest_paths import cpu_plan, one_forest
from torch import Tensor

EPS, HEADS, KV_HEADS, D = 1e-3, 4, 2, 16
FP8 = torch.float8_e4m3fn
FOREST = one_forest([[7] * 24 + [1] * 70, [7] * 24 + [2] * 5, [7] * 9 + [3] * 4, [4], [5, 6] * 4])
PLAN = cpu_plan(FOREST)
T = FOREST.tokens_computed


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    options: dict[str, Any]

    def run(self, operation: Callable[..., Any]) -> list[Tensor]:
        """Return the operation's results, then its floating-point arguments, some of which it may have changed."""
        args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in self.args)
        result = operation(*args, **self.options)
        results = result if isinstance(result, tuple) else () if result is None else (result,)
        written = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
        return [*results, *written]

    def to(self, dtype: torch.dtype) -> "Call":
        """Return a call with the floating-point arguments converted to `dtype`."""
        return self.apply(lambda x: x.to(dtype))

    def apply(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """Return a call with `change` applied to the floating-point arguments."""
        return Call(
            tuple(
                change(arg) if isinstance(arg, Tensor) and arg.is_floating_point() else arg
                for arg in self.args
            ),
            self.options,
        )


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _heads(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q with `rows` rows, and k and v with T rows, from one fused projection."""
    fused = normal(T, HEADS + 2 * KV_HEADS, D, seed=seed)
    q, k, v = fused[:, :HEADS], fused[:, HEADS:-KV_HEADS], fused[:, -KV_HEADS:]
    return q[:rows].contiguous(), k.contiguous(), v.contiguous()


WEIGHT = normal(80, seed=1) * 0.1 + 1
ANGLES = torch.arange(9)[:, None] * torch.linspace(0.1, 1.0, D // 2, dtype=torch.float64)
HEAD_WEIGHTS = (normal(D, seed=2) * 0.1 + 1, normal(D, seed=3) * 0.1 + 1)
SHAPE = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "eps": EPS}
IDS = torch.tensor([3, 0, 0, 6])

CALLS: dict[str, Call] = {
    "rms_norm": Call((normal(9, 80) * 0.1, WEIGHT, EPS), {}),
    "embed_rms_norm": Call((IDS, normal(7, 80) * 0.1, WEIGHT, EPS), {}),
    "add_rms_norm": Call((normal(9, 80) * 0.1, normal(9, 80, seed=4) * 0.1, WEIGHT, EPS), {}),
    "add_rms_norm_quantize": Call((normal(9, 80), normal(9, 80, seed=4), WEIGHT, EPS, FP8), {}),
    "quantize_rows": Call((normal(9, 80), FP8), {}),
    "rope_tables": Call((torch.arange(9), normal(D // 2).abs(), 1.1), {}),
    "qk_norm_rope": Call(
        (normal(9, (HEADS + 2 * KV_HEADS) * D) * 0.1, *HEAD_WEIGHTS, ANGLES.cos(), ANGLES.sin()), SHAPE
    ),
    "forest_attention": Call((*_heads(T, 5), PLAN, 0.3), {}),
    "final_attention": Call((*_heads(len(FOREST.final_rows), 6), PLAN, 0.3), {}),
    "swiglu": Call((normal(9, 96),), {}),
    "swiglu_quantize": Call((normal(9, 96), FP8), {}),
}  # fmt: skip
# The operations that return two results: rows rounded to fp8, and a scale per row.
QUANTIZING = ("add_rms_norm_quantize", "quantize_rows", "swiglu_quantize")

# An error that is always allowed, as a share of the largest value.
FLOOR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}


_RMS_FP32, _RMS_RATIO, _RMS_FLOOR = 2e-6, 1.5, 1e-6


def assert_close(kernel: Tensor, on_cpu: Tensor, exact: Tensor) -> None:
    """Check a kernel's result: the places of NaN and infinity, the largest error and the RMS error.

    The largest error may be twice the CPU implementation's plus a floor. In fp16 and bf16 the RMS error may be 1.5
    times the CPU implementation's: a softmax whose logits are rounded to bf16 has 2.2 times as much. In fp32 both
    errors are so small that their ratio says little, so the RMS error may be 2e-6 of the result's RMS.

    Args:
        kernel: the kernel's result.
        on_cpu: the CPU implementation's result in the same dtype.
        exact: the reference's result from the same inputs in fp64.
    """
    dtype = kernel.dtype
    assert on_cpu.dtype == dtype
    assert exact.dtype == torch.float64
    assert kernel.shape == on_cpu.shape == exact.shape
    finite = exact.isfinite()
    assert torch.equal(kernel.isnan(), on_cpu.isnan()), "NaN in other places"
    assert torch.equal(kernel.isinf(), on_cpu.isinf()), "inf in other places"
    finite &= kernel.isfinite()
    truth = exact[finite]
    error = (kernel[finite].double() - truth).abs()
    allowed = 2 * (on_cpu[finite].double() - truth).abs().max() + FLOOR[dtype] * truth.abs().max()
    assert float(error.max()) <= float(allowed), f"error {error.max():.2e}, allowed {allowed:.2e}"
    unit = truth.square().mean().sqrt().clamp_min(1e-30)
    rms = float(error.square().mean().sqrt() / unit)
    plain_rms = float((on_cpu[finite].double() - truth).square().mean().sqrt() / unit)
    most = _RMS_FP32 if dtype == torch.float32 else _RMS_RATIO * plain_rms + _RMS_FLOOR
    assert rms <= most, f"relative RMS {rms:.2e}, allowed {most:.2e}"


def assert_quantized(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Compare fp8 codes and scales of rows with the CPU implementation's.

    Scales may differ by rounding. A value between two codes may round either way, so 1 % of the codes may differ by
    one.
    """
    (codes, scale), (cpu_codes, cpu_scale) = ours, theirs
    assert (codes.dtype, codes.shape) == (cpu_codes.dtype, cpu_codes.shape)
    torch.testing.assert_close(scale, cpu_scale, rtol=1e-6, atol=0)
    step = (codes.float() - cpu_codes.float()).abs()
    assert bool((step <= cpu_codes.float().abs() / 7 + 2**-9).all())
    assert float((step > 0).float().mean()) < 0.01


def fill_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `torch.empty` and `torch.empty_like` fill floating-point tensors with NaN until the test ends."""

    def fill_results(make):
        def make_and_fill(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return make_and_fill

    monkeypatch.setattr(torch, "empty", fill_results(torch.empty))
    monkeypatch.setattr(torch, "empty_like", fill_results(torch.empty_like))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def assert_extreme_rows_are_kept(run: Callable[[Tensor], Tensor]) -> None:
    """Check a matmul [T, 96] -> [T, 64] on rows that are zero, tiny or huge, or contain NaN or infinity."""
    x = draw(6, 96)
    x[0] = 0
    x[1] *= 1e-37
    x[2] *= 1e30
    x[3, 5] = math.nan
    x[4, 5] = math.inf
    y = run(x)
    assert torch.equal(y[0], torch.zeros(64))
    assert y[[1, 2, 5]].isfinite().all()
    assert not y[[3, 4]].isfinite().any(), (
        "a row with NaN or infinity must not give a finite result"
    )
