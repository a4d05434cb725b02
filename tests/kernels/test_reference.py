"""Compare the reference with PyTorch's own operations, and its attention with the definition of a path, in fp64."""

import random
from inspect import isfunction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels.forest_paths import cpu_plan, one_forest, path_rows
from helpers.kernels.operations import (
    ANGLES,
    CALLS,
    EPS,
    FP8,
    HEADS,
    KV_HEADS,
    QUANTIZING,
    D,
    normal,
)
from torch import Tensor

from lastword import kernels
from lastword.kernels import cpu, reference


def close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == torch.float64 and torch.allclose(ours, theirs, rtol=1e-13, atol=1e-14)


def test_every_operation_has_one() -> None:
    named = {name for name in kernels.__all__ if isfunction(vars(cpu).get(name))}
    assert named == CALLS.keys()
    assert all(callable(getattr(reference, name)) for name in named)


def test_it_is_short() -> None:
    assert len(Path(reference.__file__).read_text().splitlines()) <= 80


def test_norms() -> None:
    x, residual, weight = normal(9, 80), normal(9, 80, seed=1), normal(80)
    assert close(reference.rms_norm(x, weight, EPS), F.rms_norm(x, (80,), weight, EPS))
    total = x + residual
    assert close(
        reference.add_rms_norm(x, residual, weight, EPS), F.rms_norm(total, (80,), weight, EPS)
    )
    assert torch.equal(residual, total)
    rows, normed = reference.embed_rms_norm(torch.tensor([8, 0, 8]), x, weight, EPS)
    assert torch.equal(rows, x[[8, 0, 8]])
    assert close(normed, F.rms_norm(rows, (80,), weight, EPS))


def test_rotation_is_that_of_complex_numbers() -> None:
    call = CALLS["qk_norm_rope"]
    qkv, q_weight, k_weight, *_ = call.args
    heads = qkv.view(9, -1, D)
    expected = []
    for head in range(HEADS + 2 * KV_HEADS):
        x = heads[:, head]
        if head < HEADS + KV_HEADS:
            weight = q_weight if head < HEADS else k_weight
            a, b = F.rms_norm(x, (D,), weight, EPS).chunk(2, dim=1)
            turned = torch.complex(a, b) * torch.complex(ANGLES.cos(), ANGLES.sin())
            x = torch.cat([turned.real, turned.imag], dim=1)
        expected.append(x)
    written, *_ = call.run(reference.qk_norm_rope)
    assert close(written, torch.cat(expected, dim=1))


def test_rope_tables() -> None:
    positions, frequencies, scale = CALLS["rope_tables"].args
    turns = torch.exp(1j * torch.outer(positions.double(), frequencies)) * scale
    cos, sin = reference.rope_tables(positions, frequencies, scale)
    assert close(cos, turns.real)
    assert close(sin, turns.imag)


def test_swiglu() -> None:
    (x,) = CALLS["swiglu"].args
    gate, up = x.chunk(2, dim=1)
    assert close(reference.swiglu(x), F.silu(gate) * up)


@pytest.mark.parametrize("name", QUANTIZING)
def test_quantised_rows_stand_for_the_rows(name: str) -> None:
    """Each value is within half a step of e4m3, and a row's largest value becomes the format's largest number."""
    plain = name.removesuffix("_quantize")
    call = CALLS[name]
    (y, scale, *_), exact = call.run(getattr(reference, name)), call.args[0]
    if plain != "quantize_rows":
        exact = kernels_call(plain, call.args[:-1])
    assert (y.dtype, scale.dtype) == (FP8, torch.float64)
    back = y.double() * scale[:, None]
    assert float(((back - exact).abs() / (exact.abs() / 16 + scale[:, None] * 2**-10)).max()) <= 1
    assert torch.equal(y.double().abs().amax(1), torch.full((9,), torch.finfo(FP8).max).double())


def kernels_call(name: str, args: tuple) -> Tensor:
    copied = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    return getattr(reference, name)(*copied)


def by_definition(q: Tensor, k: Tensor, v: Tensor, paths: list[list[int]], scale: float) -> Tensor:
    """Return the softmax attention of query i over the keys of rows paths[i]."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    out = []
    for i, keys in enumerate(paths):
        weights = torch.einsum("hd,khd->hk", q[i], k[keys]).mul(scale).softmax(-1)
        out.append(torch.einsum("hk,khd->hd", weights, v[keys]).flatten())
    return torch.stack(out)


@pytest.mark.parametrize("seed", range(8))
def test_attention_over_random_forests(seed: int) -> None:
    random_ = random.Random(seed)
    texts = [
        [random_.randrange(2) for _ in range(random_.randrange(1, 50))]
        for _ in range(random_.randrange(1, 9))
    ]
    forest = one_forest([*texts, texts[0] + [5] * 9, texts[0][:10] + [6] * 12])
    plan, rows = cpu_plan(forest), range(forest.tokens_computed)
    k, v = normal(len(rows), 2, 8), normal(len(rows), 2, 8, seed=1)
    for attend, finals in (
        (reference.forest_attention, rows),
        (reference.final_attention, forest.final_rows),
    ):
        q = normal(len(finals), 4, 8, seed=2)
        paths = [path_rows(forest, row) for row in finals]
        assert close(attend(q, k, v, plan, 0.3), by_definition(q, k, v, paths, 0.3))


def test_attention_of_one_text_is_that_of_pytorch() -> None:
    plan = cpu_plan(one_forest([[1] * 40]))
    q, k, v = normal(40, 4, 8), normal(40, 2, 8, seed=1), normal(40, 2, 8, seed=2)
    expected = F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, scale=0.3, enable_gqa=True
    )
    assert close(
        reference.forest_attention(q, k, v, plan, 0.3), expected[0].transpose(0, 1).flatten(1)
    )


@pytest.mark.parametrize("name", CALLS)
def test_what_fp32_would_lose_is_kept(name: str) -> None:
    """Changing the inputs only in the 40th bit changes the results, by a similarly small amount."""
    call = CALLS[name]
    nudged = call.apply(lambda x: x * (1 + 2.0**-40 * normal(*x.shape, seed=9)))
    lost = [x.float() for x in call.args if isinstance(x, Tensor) and x.is_floating_point()]
    kept = [x.float() for x in nudged.args if isinstance(x, Tensor) and x.is_floating_point()]
    assert all(float((a != b).double().mean()) < 0.01 for a, b in zip(lost, kept, strict=True))
    operation = getattr(reference, name)
    results = zip(call.run(operation), nudged.run(operation), strict=True)
    for i, (before, after) in enumerate(results):
        if i == 0 and name in QUANTIZING:
            continue  # fp8
        assert before.dtype == torch.float64
        moved = (after - before).abs().max() / before.abs().max()
        assert 2.0**-46 < float(moved) < 2.0**-30, f"result {i}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_results_have_the_dtype_that_is_given(name: str, dtype: torch.dtype) -> None:
    results = CALLS[name].to(dtype).run(getattr(reference, name))
    assert {each.dtype for each in results[name in QUANTIZING :]} == {dtype}
