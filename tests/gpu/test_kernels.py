"""Every Triton kernel on the device against its twin, at the shapes of the published models."""

import random

import pytest
import torch
from helpers.kernel_error import assert_close
from helpers.nan_memory import fill_with_nan

from lastword import kernels
from lastword.batching.forest import Forest, plan_forests
from lastword.bench.shapes import SIZES
from lastword.kernels import cpu as reference
from lastword.kernels.attention_plan import AttentionPlan

GPU = torch.device("cuda")
MODELS = ("0.6B", "4B", "8B")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

TEXTS: dict[str, list[list[int]]] = {
    "one row": [[1]],
    "long": [[1] * 4096],
    "many": [[i] * n for i, n in enumerate((1, 2, 63, 64, 65, 127, 128, 129, 511, 700))],
    "prompt": [[7] * 24 + [i] * 12 for i in range(300)],
    "tree": [[1] * 100 + [2] * 300 + [i] * (40 + i) for i in range(9)] + [[1] * 50 + [9] * 700],
    "inside": [[7] * 400 + [1], [7] * 120, [7] * 30, [7] * 400],
    "levels": [[level for level in range(d) for _ in range(29)] + [99 + d] for d in range(1, 11)],
}


def made(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator(GPU).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=GPU).to(dtype)


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fill_with_nan(monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("T", [1, 2, 1023])
def test_row_kernels(T: int, model: str, dtype: torch.dtype) -> None:
    C, F, _, H, KH, D = SIZES[model]
    x, residual, weight = made(T, C, dtype=dtype), made(T, C, dtype=dtype), made(C, dtype=dtype)
    twin = reference.rms_norm_ref(x, weight, 1e-6)
    exact = reference.rms_norm_ref(x.float(), weight.float(), 1e-6)
    assert_close(kernels.rms_norm(x, weight, 1e-6), twin, exact.double())

    ids = torch.arange(T, device=GPU, dtype=torch.int32).flip(0)
    rows, out = kernels.embed_rms_norm(ids, x, weight, 1e-6)
    assert torch.equal(rows, x.flip(0))
    assert_close(out, twin.flip(0), exact.double().flip(0))

    ours, theirs = residual.clone(), residual.clone()
    out = kernels.add_rms_norm(x, ours, weight, 1e-6)
    twin = reference.add_rms_norm_ref(x, theirs, weight, 1e-6)
    assert torch.equal(ours, theirs)
    exact = reference.rms_norm_ref(theirs.float(), weight.float(), 1e-6)
    assert_close(out, twin, exact.double())

    gate_up = made(T, 2 * F, dtype=dtype)
    exact = reference.swiglu_ref(gate_up.float())
    assert_close(kernels.swiglu(gate_up), reference.swiglu_ref(gate_up), exact.double())

    qkv, weights = made(T, (H + 2 * KH) * D, dtype=dtype), (made(D, dtype=dtype),) * 2
    angles = torch.arange(T, device=GPU)[:, None] * torch.rand(D // 2, device=GPU)
    results = [qkv.clone(), qkv.clone(), qkv.float()]
    for run, result in zip(
        (kernels.qk_norm_rope, reference.qk_norm_rope_ref, reference.qk_norm_rope_ref),
        results,
        strict=True,
    ):
        head_weights = [w.to(result.dtype) for w in weights]
        run(result, *head_weights, angles.cos(), angles.sin(), num_heads=H, num_kv_heads=KH, eps=1e-6)  # fmt: skip
    assert_close(results[0], results[1], results[2].double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", TEXTS)
def test_attention(name: str, model: str, dtype: torch.dtype) -> None:
    _, _, _, H, KH, D = SIZES[model]
    check_attention(TEXTS[name], H, KH, D, dtype)


@pytest.mark.parametrize(
    ("H", "KH", "D"), [(1, 1, 32), (4, 2, 64), (8, 1, 64), (5, 1, 128), (2, 2, 80)]
)
def test_attention_of_other_heads(H: int, KH: int, D: int) -> None:
    check_attention(TEXTS["tree"], H, KH, D, torch.bfloat16)


@pytest.mark.parametrize("seed", range(20))
def test_attention_of_random_forests(seed: int) -> None:
    draw = random.Random(seed)
    texts = [
        [draw.randrange(2) for _ in range(draw.randrange(1, 400))] for _ in range(draw.randrange(1, 30))
    ]  # fmt: skip
    texts += [texts[0] + [5] * draw.randrange(200), texts[0][:10] + [6] * 12]
    check_attention(texts, 32, 8, 128, torch.bfloat16)


def pack(texts: list[list[int]]) -> tuple[Forest, AttentionPlan]:
    (forest,) = plan_forests(texts, 10**9)
    return forest, AttentionPlan(forest.segments, forest.final_rows, GPU)


def check_attention(texts: list[list[int]], H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    forest, plan = pack(texts)
    qkv = made(forest.tokens_computed, H + 2 * KH, D, dtype=dtype)
    q, k, v = qkv[:, :H], qkv[:, H:-KH], qkv[:, -KH:]
    final_q = q[torch.tensor(forest.final_rows, device=GPU)]
    scale = D**-0.5
    for kernel, twin, query in (
        (kernels.forest_attention, reference.forest_attention_ref, q),
        (kernels.final_attention, reference.final_attention_ref, final_q),
    ):
        exact = twin(query.double(), k.double(), v.double(), plan, scale)
        ours = kernel(query, k, v, plan, scale)
        assert_close(ours, twin(query, k, v, plan, scale), exact)


ROWS = 600_000  # times 4096 or more columns: beyond 2^31 elements


def test_offsets_beyond_31_bits() -> None:
    dtype, last = torch.bfloat16, slice(ROWS - 24, ROWS)
    x, weight = torch.zeros(ROWS, 4096, dtype=dtype, device=GPU), made(4096, dtype=dtype)
    x[last] = made(24, 4096, dtype=dtype)
    ours = kernels.rms_norm(x, weight, 1e-6)[last]
    assert torch.allclose(ours, reference.rms_norm_ref(x[last], weight, 1e-6), rtol=0.02)
    ours = kernels.swiglu(x)[last]
    assert torch.allclose(ours, reference.swiglu_ref(x[last]), rtol=0.02, atol=1e-3)


def test_attention_offsets_beyond_31_bits() -> None:
    dtype, H, KH, D, own = torch.bfloat16, 32, 8, 128, 12
    forest, plan = pack([[i, *[1] * (own - 1)] for i in range(ROWS // own)])
    assert forest.tokens_computed == ROWS
    qkv = torch.zeros(ROWS, (H + 2 * KH) * D, dtype=dtype, device=GPU)
    last = slice(ROWS - 4 * own, ROWS)
    qkv[last] = made(4 * own, qkv.shape[1], dtype=dtype)
    weight, table = made(D, dtype=dtype), torch.rand(ROWS, D // 2, device=GPU)
    expected = qkv[last].clone()
    heads = {"num_heads": H, "num_kv_heads": KH, "eps": 1e-6}
    kernels.qk_norm_rope(qkv, weight, weight, table, table, **heads)
    reference.qk_norm_rope_ref(expected, weight, weight, table[last], table[last], **heads)
    assert torch.allclose(qkv[last], expected, rtol=0.02, atol=1e-2)
    q, k, v = qkv.view(ROWS, -1, D).split((H, KH, KH), dim=1)
    ours = kernels.forest_attention(q, k, v, plan, D**-0.5)[last]
    few, small = pack([[i, *[1] * (own - 1)] for i in range(4)])
    assert few.segments.length == [own] * 4
    twin = reference.forest_attention_ref(q[last], k[last], v[last], small, D**-0.5)
    assert torch.allclose(ours, twin, rtol=0.02, atol=1e-2)


def test_nothing_compiles_after_warm_up() -> None:
    C, F, _, H, KH, D = SIZES["0.6B"]
    draw = random.Random(0)
    compiled = compilations()

    def run(texts: list[list[int]]) -> None:
        forest, plan = pack(texts)
        T = forest.tokens_computed
        x, weight = made(T, C, dtype=torch.bfloat16), made(C, dtype=torch.bfloat16)
        kernels.rms_norm(x, weight, 1e-6)
        kernels.add_rms_norm(x, x.clone(), weight, 1e-6)
        kernels.swiglu(made(T, 2 * F, dtype=torch.bfloat16))
        qkv = made(T, H + 2 * KH, D, dtype=torch.bfloat16)
        q, k, v = qkv.split((H, KH, KH), dim=1)
        kernels.forest_attention(q, k, v, plan, 1.0)
        rows = torch.tensor(forest.final_rows, device=GPU)
        kernels.final_attention(q[rows], k, v, plan, 1.0)

    for texts in (
        [[1] * 2000],
        [[1] * 300 + [2] * 300, [1] * 300 + [3] * 9],
        [[1] * 3],
        TEXTS["prompt"],
    ):
        run(texts)  # fmt: skip
    warm = compiled()
    assert warm > 0
    for _ in range(1000):
        run([
            [7] * draw.choice((0, 24)) + [draw.randrange(9) for _ in range(draw.randrange(1, 300))]
            for _ in range(draw.randrange(1, 12))
        ])  # fmt: skip
    assert compiled() == warm


def compilations():
    """Count the binaries that this process holds, over all kernels."""
    from lastword.kernels.gpu import final_attention as final_attention_kernel
    from lastword.kernels.gpu import forest_attention as forest_attention_kernel
    from lastword.kernels.gpu import qk_norm_rope as qk_norm_rope_kernel
    from lastword.kernels.gpu import rms_norm as rms_norm_kernel
    from lastword.kernels.gpu import swiglu as swiglu_kernel

    found = [
        value
        for module in (
            final_attention_kernel,
            forest_attention_kernel,
            qk_norm_rope_kernel,
            rms_norm_kernel,
            swiglu_kernel,
        )
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "device_caches")
    ]
    return lambda: sum(len(cache[0]) for kernel in found for cache in kernel.device_caches.values())
