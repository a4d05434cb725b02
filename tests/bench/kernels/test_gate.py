"""The gate passes every right implementation and no wrong one."""

from collections.abc import Callable

import pytest
import torch

from lastword import kernels
from lastword.bench.kernels.cases import Case, CaseInputs, cases
from lastword.bench.kernels.gate import Gate, GateResult, Implementation, wrap_operation
from lastword.bench.options import OPS
from lastword.kernels import cpu, reference

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_case(op: str, dtype: torch.dtype, title: str = "") -> Case:
    found = cases([op], ["tiny"], 64, dtype, torch.device("cpu"))
    return next(case for case in found if title in case.title)


def judge(op: str, operation: Callable, dtype=torch.float32, title: str = "") -> GateResult:
    with torch.inference_mode():
        case = make_case(op, dtype, title)
        return Gate(case, dtype).check(wrap_operation(operation, case.inputs()))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_the_right_ones_pass(op: str, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        for case in cases([op], ["tiny"], 64, dtype, torch.device("cpu")):
            verdict = Gate(case, dtype).check(wrap_operation(getattr(kernels, op), case.inputs()))
            assert verdict.right, (case.title, verdict)
            assert verdict.max_error is not None
            assert 0 <= verdict.max_error <= verdict.allowed


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_the_truth_is_in_fp64_throughout(op: str, dtype: torch.dtype) -> None:
    """Values computed in fp32 and then widened would all be exact in fp32."""
    with torch.inference_mode():
        for case in cases([op], ["tiny"], 64, dtype, torch.device("cpu")):
            truth, *_ = Gate(case, dtype).truth
            if op == "qk_norm_rope":
                truth = truth[:, : 6 * 32]  # of 8 heads, values stay as they are
            beyond = (truth.float().double() != truth).double().mean()
            assert truth.dtype == torch.float64
            assert float(beyond) > 0.9, case.title  # a text's first row attends to itself alone


@pytest.mark.parametrize("op", OPS)
def test_the_truth_is_the_references(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes with the reference, not with the CPU implementation, which only sets the allowed error."""
    case, true, ours = make_case(op, torch.float32), getattr(reference, op), getattr(cpu, op)
    call = case.inputs().dense().double()
    expected = wrap_operation(true, call).read(true(*call.args, **call.options))
    with torch.inference_mode():
        gate = Gate(case, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(gate.truth, expected, strict=True))

        def wrong(*args, **options):
            result = ours(*args, **options)
            args[0].mul_(1.01)
            return result

        monkeypatch.setattr(cpu, op, wrong)
        moved = Gate(case, torch.float32)
        assert moved.allowed != gate.allowed
        assert all(torch.equal(a, b) for a, b in zip(moved.truth, gate.truth, strict=True))


def no_eps(x, weight, eps):
    return kernels.rms_norm(x, weight, 0.0)


def eps_outside(x, weight, eps):
    return (x.float() / (x.float().square().mean(-1, True).sqrt() + eps) * weight).to(x.dtype)


def mean_subtracted(x, weight, eps):
    return kernels.rms_norm(x - x.mean(-1, True), weight, eps)


def last_column_unwritten(x, weight, eps):
    out = torch.empty_like(x)
    out[:, :-1] = kernels.rms_norm(x, weight, eps)[:, :-1]
    return out


def last_row_unwritten(x, weight, eps):
    out = torch.empty_like(x)
    out[:-1] = kernels.rms_norm(x, weight, eps)[:-1]
    return out


def writes_its_input(x, weight, eps):
    return x.copy_(kernels.rms_norm(x, weight, eps))


def too_wide(x, weight, eps):
    return kernels.rms_norm(x, weight, eps).double()


def too_narrow(x, weight, eps):
    return kernels.rms_norm(x, weight, eps).to(torch.bfloat16)


def transposed(x, weight, eps):
    return kernels.rms_norm(x, weight, eps).T


def returns_nothing(x, weight, eps):
    kernels.rms_norm(x, weight, eps)


def residual_left(x, residual, weight, eps):
    return kernels.add_rms_norm(x, residual.clone(), weight, eps)


def halves_swapped(qkv, q_weight, k_weight, cos, sin, **options):
    kernels.qk_norm_rope(qkv, q_weight, k_weight, cos, -sin, **options)


def values_normed_too(qkv, q_weight, k_weight, cos, sin, *, num_heads, num_kv_heads, eps):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    kernels.qk_norm_rope(qkv, q_weight, k_weight, cos, sin, eps=eps, **heads)
    values = qkv[:, -num_kv_heads * len(k_weight) :]
    values.copy_(kernels.rms_norm(values, torch.ones(values.shape[1]), eps))


def other_kv_heads(q, k, v, plan, scale):
    return kernels.forest_attention(q, k.flip(1), v.flip(1), plan, scale)


def one_key_less(q, k, v, plan, scale):
    blind = k.clone()
    blind[0] = -100 * q[:, 0].mean(0)
    return kernels.forest_attention(q, blind, v, plan, scale)


def unscaled(q, k, v, plan, scale):
    return kernels.forest_attention(q, k, v, plan, 1.01 * scale)


def late_rows_miss_keys(q, k, v, plan, scale):
    """Only the last rows have a small error, below the rounding error of the early rows."""
    out = kernels.forest_attention(q, k, v, plan, scale)
    out[-2:] *= 1.02
    return out


def other_final_heads(q, k, v, plan, scale):
    return kernels.final_attention(q.flip(1), k, v, plan, scale)


def gate_and_up_swapped(gate_up):
    return kernels.swiglu(gate_up.roll(gate_up.shape[1] // 2, 1))


WRONG = {
    "rms_norm": [
        no_eps,
        eps_outside,
        mean_subtracted,
        last_column_unwritten,
        last_row_unwritten,
        writes_its_input,
        too_wide,
        too_narrow,
        transposed,
        returns_nothing,
    ],
    "add_rms_norm": [residual_left],
    "qk_norm_rope": [halves_swapped, values_normed_too],
    "forest_attention": [other_kv_heads, one_key_less, unscaled, late_rows_miss_keys],
    "final_attention": [other_final_heads],
    "swiglu": [gate_and_up_swapped],
}


@pytest.mark.parametrize(
    ("op", "wrong"),
    [pytest.param(op, one, id=one.__name__) for op, each in WRONG.items() for one in each],
)
def test_a_wrong_one_is_caught(op: str, wrong: Callable) -> None:
    verdict = judge(op, wrong)
    assert not verdict.right
    assert verdict.reason


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        ("rms_norm", no_eps),
        ("rms_norm", last_column_unwritten),
        ("qk_norm_rope", halves_swapped),
        ("forest_attention", other_kv_heads),
        ("forest_attention", late_rows_miss_keys),
        ("final_attention", other_final_heads),
    ],
)
def test_a_wrong_one_is_caught_in_every_dtype(op: str, wrong: Callable, dtype: torch.dtype) -> None:
    assert not judge(op, wrong, dtype).right


def test_a_wrong_shared_prefix_is_caught() -> None:
    case = make_case("forest_attention", torch.float32, "shared")
    segments = case.batch.forest.segments
    count = len(segments.start)
    none = [0] * count
    roots = kernels.Segments(segments.start, segments.length, [-1] * count, none, none)
    alone = kernels.CpuPlan.of(roots, case.batch.forest.final_rows, torch.device("cpu"))

    def ancestors_ignored(q, k, v, plan, scale):
        return kernels.forest_attention(q, k, v, alone, scale)

    assert not judge("forest_attention", ancestors_ignored, title="shared").right


def test_unwritten_memory_is_named_and_the_setting_restored() -> None:
    verdict = judge("rms_norm", last_row_unwritten)
    assert verdict.reason == "64 elements unwritten or not finite"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_runner_with_another_layout() -> None:
    """Baselines may use another layout, as long as `read` returns the reference's."""

    def prepare(inputs: CaseInputs) -> Implementation:
        (gate_up,) = inputs.args
        gate, up = (half.contiguous() for half in gate_up.chunk(2, dim=-1))
        return Implementation(
            lambda: torch.nn.functional.silu(gate) * up, lambda result: [result, gate_up]
        )

    case = make_case("swiglu", torch.float32)
    assert Gate(case, torch.float32).check(prepare(case.inputs()), poison=False).right
