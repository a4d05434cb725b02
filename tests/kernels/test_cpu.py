"""Compare the CPU implementation of every operation with the reference in fp64; mutants must be detected."""

import random
from collections.abc import Callable

import pytest
import torch
from helpers.kernels.forest_paths import cpu_plan, one_forest
from helpers.kernels.operations import CALLS, FLOOR, QUANTIZING, Call
from torch import Tensor

from lastword.kernels import cpu, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Half a unit in the last place of the largest value, in fp32 a few times that; also for tables, scales and residuals.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def differs(operation: Callable, call: Call, name: str, dtype: torch.dtype) -> str:
    """Describe a difference from the fp64 reference on the same inputs that exceeds rounding; "" if there is none."""
    call = call.to(dtype)
    if name == "qk_norm_rope":  # its tables are in fp32
        *args, cos, sin = call.args
        call = Call((*args, cos.float(), sin.float()), call.options)
    ours = call.run(operation)
    exact = call.to(torch.float64).run(getattr(reference, name))
    if len(ours) != len(exact):
        return f"{len(ours)} results of {len(exact)}"
    if name in QUANTIZING:
        (y, scale, *ours), (true, true_scale, *exact) = ours, exact
        back = (y.double() * scale[:, None], true.double() * true_scale[:, None])
        if y.dtype != true.dtype or not near(*back, 1 / 16):  # a tie may round either way
            return "codes"
        if not near(scale.double(), true_scale, ROUNDING[dtype]):
            return "scales"
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        if not near(a.double(), b, ROUNDING[dtype]):
            return f"result {i}"
    return ""


def near(ours: Tensor, exact: Tensor, share: float) -> bool:
    return ours.shape == exact.shape and bool(
        (ours - exact).abs().max() <= share * exact.abs().max()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_it_is_the_reference(name: str, dtype: torch.dtype) -> None:
    assert differs(getattr(cpu, name), CALLS[name], name, dtype) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_attention_over_random_forests(seed: int, dtype: torch.dtype) -> None:
    draw = random.Random(seed)
    texts = [
        [draw.randrange(2) for _ in range(draw.choice((1, 5, 40, 150)))]
        for _ in range(draw.randrange(1, 12))
    ]
    forest = one_forest([*texts, texts[0] + [5] * 20, texts[0][:10] + [6] * 12])
    plan, kv_heads = cpu_plan(forest), draw.choice((1, 2, 4))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(forest.tokens_computed, 4 + 2 * kv_heads, 16, generator=generator)
    q, k, v = (x.to(dtype) for x in rows.split((4, kv_heads, kv_heads), dim=1))
    for name, queries in (("forest_attention", q), ("final_attention", q[forest.final_rows])):
        ours = getattr(cpu, name)(queries, k, v, plan, 0.25)
        wide = (x.double() for x in (queries, k, v))
        exact = getattr(reference, name)(*wide, plan, 0.25)
        assert ours.dtype == dtype
        error = (ours.double() - exact).abs().max()
        assert float(error) <= FLOOR[dtype] * float(exact.abs().max())


def eps_outside(x, weight, eps):
    return (x.float() / (x.float().square().mean(-1, True).sqrt() + eps) * weight).to(x.dtype)


def norm_without_weight(x, weight, eps):
    return cpu.rms_norm(x, torch.ones_like(weight), eps)


def row_of_the_next_token(ids, table, weight, eps):
    return cpu.embed_rms_norm((ids + 1) % len(table), table, weight, eps)


def added_after_the_norm(x, residual, weight, eps):
    out = cpu.rms_norm(residual, weight, eps)
    residual.add_(x)
    return out


def residual_left(x, residual, weight, eps):
    return cpu.add_rms_norm(x, residual.clone(), weight, eps)


def quantised_before_the_norm(x, residual, weight, eps, dtype):
    return cpu.quantize_rows(residual.add_(x), dtype)


def one_scale_for_all_rows(x, dtype):
    scale = (x.float().abs().amax() / torch.finfo(dtype).max).expand(len(x))
    return (x.float() / scale[:, None]).to(dtype), scale


def positions_off_by_one(positions, inv_freq, scale):
    return cpu.rope_tables((positions - 1).clamp_min(0), inv_freq, scale)


def unscaled_tables(positions, inv_freq, scale):
    return cpu.rope_tables(positions, inv_freq, 1.0)


def halves_swapped(qkv, q_weight, k_weight, cos, sin, **options):
    cpu.qk_norm_rope(qkv, q_weight, k_weight, cos, -sin, **options)


def weights_swapped(qkv, q_weight, k_weight, cos, sin, **options):
    cpu.qk_norm_rope(qkv, k_weight, q_weight, cos, sin, **options)


def other_kv_heads(q, k, v, plan, scale):
    return cpu.forest_attention(q, k.flip(1), v.flip(1), plan, scale)


def unscaled(q, k, v, plan, scale):
    return cpu.forest_attention(q, k, v, plan, 1.0)


def keys_one_row_late(q, k, v, plan, scale):
    return cpu.forest_attention(q, k.roll(1, 0), v.roll(1, 0), plan, scale)


def ancestors_ignored(q, k, v, plan, scale):
    s = plan.segments
    roots, none = [-1] * len(s.start), [0] * len(s.start)
    alone = type(s)(s.start, s.length, roots, none, none)
    return cpu.forest_attention(q, k, v, type(plan).of(alone, plan.final_rows, q.device), scale)


def other_final_heads(q, k, v, plan, scale):
    return cpu.final_attention(q, k.flip(1), v.flip(1), plan, scale)


def final_path_one_key_short(q, k, v, plan, scale):
    short = type(plan)(
        plan.segments, plan.final_rows, plan.blocks,
        tuple((texts, rows[:, :-1] if rows.shape[1] > 1 else rows) for texts, rows in plan.finals),
        plan.num_finals,
    )  # fmt: skip
    return cpu.final_attention(q, k, v, short, scale)


def gate_and_up_swapped(gate_up):
    return cpu.swiglu(gate_up.roll(gate_up.shape[1] // 2, 1))


def sigmoid_for_silu(gate_up):
    gate, up = gate_up.float().chunk(2, dim=1)
    return (gate.sigmoid() * up).to(gate_up.dtype)


def swapped_and_quantised(gate_up, dtype):
    return cpu.quantize_rows(gate_and_up_swapped(gate_up), dtype)


MUTANTS: dict[str, list[Callable]] = {
    "rms_norm": [eps_outside, norm_without_weight],
    "embed_rms_norm": [row_of_the_next_token],
    "add_rms_norm": [added_after_the_norm, residual_left],
    "add_rms_norm_quantize": [quantised_before_the_norm],
    "quantize_rows": [one_scale_for_all_rows],
    "rope_tables": [positions_off_by_one, unscaled_tables],
    "qk_norm_rope": [halves_swapped, weights_swapped],
    "forest_attention": [other_kv_heads, unscaled, keys_one_row_late, ancestors_ignored],
    "final_attention": [other_final_heads, final_path_one_key_short],
    "swiglu": [gate_and_up_swapped, sigmoid_for_silu],
    "swiglu_quantize": [swapped_and_quantised],
}


def test_every_operation_has_a_mutant() -> None:
    assert MUTANTS.keys() == CALLS.keys()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "mutant"),
    [pytest.param(name, one, id=one.__name__) for name, each in MUTANTS.items() for one in each],
)
def test_a_mutant_is_caught(name: str, mutant: Callable, dtype: torch.dtype) -> None:
    assert differs(mutant, CALLS[name], name, dtype) != ""
