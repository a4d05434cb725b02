"""Every Triton kernel on the device against the reference in fp64, at the shapes of the published models."""

import random

import pytest
import torch
from helpers.kernels.forest_paths import cpu_plan, one_forest, tables_of
from helpers.kernels.operations import assert_close, fill_with_nan

from lastword import kernels
from lastword.batching.forest import Forest
from lastword.bench.shapes import SIZES
from lastword.kernels import KernelTables, cpu, kernel_tables, reference

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


def make(*shape: int, dtype: torch.dtype) -> torch.Tensor:
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
    x, residual, weight = make(T, C, dtype=dtype), make(T, C, dtype=dtype), make(C, dtype=dtype)
    plain = cpu.rms_norm(x, weight, 1e-6)
    exact = reference.rms_norm(x.double(), weight.double(), 1e-6)
    assert_close(kernels.rms_norm(x, weight, 1e-6), plain, exact)

    ids = torch.arange(T, device=GPU, dtype=torch.int32).flip(0)
    rows, out = kernels.embed_rms_norm(ids, x, weight, 1e-6)
    assert torch.equal(rows, x.flip(0))
    assert_close(out, plain.flip(0), exact.flip(0))

    ours, theirs = residual.clone(), residual.clone()
    out = kernels.add_rms_norm(x, ours, weight, 1e-6)
    plain = cpu.add_rms_norm(x, theirs, weight, 1e-6)
    assert torch.equal(ours, theirs)
    assert_close(out, plain, reference.rms_norm(theirs.double(), weight.double(), 1e-6))

    gate_up = make(T, 2 * F, dtype=dtype)
    exact = reference.swiglu(gate_up.double())
    assert_close(kernels.swiglu(gate_up), cpu.swiglu(gate_up), exact)

    qkv, head_weight = make(T, (H + 2 * KH) * D, dtype=dtype), make(D, dtype=dtype)
    angles = torch.arange(T, device=GPU)[:, None] * torch.rand(D // 2, device=GPU)
    heads = {"num_heads": H, "num_kv_heads": KH, "eps": 1e-6}
    results = [qkv.clone(), qkv.clone(), qkv.double()]
    weights, tables = [head_weight, head_weight], [angles.cos(), angles.sin()]
    kernels.qk_norm_rope(results[0], *weights, *tables, **heads)
    cpu.qk_norm_rope(results[1], *weights, *tables, **heads)
    exactly = (x.double() for x in (*weights, *tables))
    reference.qk_norm_rope(results[2], *exactly, **heads)
    assert_close(*results)


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


def tables(forest: Forest, H: int, KH: int, dtype: torch.dtype) -> KernelTables:
    segments, final_rows = forest.segments, forest.final_rows
    return kernel_tables(segments, final_rows, GPU, dtype=dtype, group=H // KH)


def check_attention(texts: list[list[int]], H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    forest = one_forest(texts)
    plan = cpu_plan(forest, GPU)
    qkv = make(forest.tokens_computed, H + 2 * KH, D, dtype=dtype)
    q, k, v = qkv[:, :H], qkv[:, H:-KH], qkv[:, -KH:]
    final_q = q[torch.tensor(forest.final_rows, device=GPU)]
    packed, scale = tables_of(plan, q, k), D**-0.5
    for name, query in (("forest_attention", q), ("final_attention", final_q)):
        exact = getattr(reference, name)(query.double(), k.double(), v.double(), plan, scale)
        plain = getattr(cpu, name)(query, k, v, plan, scale)
        assert_close(getattr(kernels, name)(query, k, v, packed, scale), plain, exact)


ROWS = 600_000  # times 4096 or more columns: beyond 2^31 elements


def test_offsets_beyond_31_bits() -> None:
    dtype, last = torch.bfloat16, slice(ROWS - 24, ROWS)
    x, weight = torch.zeros(ROWS, 4096, dtype=dtype, device=GPU), make(4096, dtype=dtype)
    x[last] = make(24, 4096, dtype=dtype)
    ours = kernels.rms_norm(x, weight, 1e-6)[last]
    assert torch.allclose(ours, cpu.rms_norm(x[last], weight, 1e-6), rtol=0.02)
    ours = kernels.swiglu(x)[last]
    assert torch.allclose(ours, cpu.swiglu(x[last]), rtol=0.02, atol=1e-3)


def test_attention_offsets_beyond_31_bits() -> None:
    dtype, H, KH, D, own = torch.bfloat16, 32, 8, 128, 12
    forest = one_forest([[i, *[1] * (own - 1)] for i in range(ROWS // own)])
    assert forest.tokens_computed == ROWS
    qkv = torch.zeros(ROWS, (H + 2 * KH) * D, dtype=dtype, device=GPU)
    last = slice(ROWS - 4 * own, ROWS)
    qkv[last] = make(4 * own, qkv.shape[1], dtype=dtype)
    weight, table = make(D, dtype=dtype), torch.rand(ROWS, D // 2, device=GPU)
    expected = qkv[last].clone()
    heads = {"num_heads": H, "num_kv_heads": KH, "eps": 1e-6}
    kernels.qk_norm_rope(qkv, weight, weight, table, table, **heads)
    cpu.qk_norm_rope(expected, weight, weight, table[last], table[last], **heads)
    assert torch.allclose(qkv[last], expected, rtol=0.02, atol=1e-2)
    q, k, v = qkv.view(ROWS, -1, D).split((H, KH, KH), dim=1)
    ours = kernels.forest_attention(q, k, v, tables(forest, H, KH, dtype), D**-0.5)[last]
    few = one_forest([[i, *[1] * (own - 1)] for i in range(4)])
    assert few.segments.length == [own] * 4
    plain = cpu.forest_attention(q[last], k[last], v[last], cpu_plan(few, GPU), D**-0.5)
    assert torch.allclose(ours, plain, rtol=0.02, atol=1e-2)


def test_nothing_compiles_after_warm_up() -> None:
    C, F, _, H, KH, D = SIZES["0.6B"]
    draw = random.Random(0)
    compiled = compilations()

    def run(texts: list[list[int]]) -> None:
        forest = one_forest(texts)
        T, packed = forest.tokens_computed, tables(forest, H, KH, torch.bfloat16)
        x, weight = make(T, C, dtype=torch.bfloat16), make(C, dtype=torch.bfloat16)
        kernels.rms_norm(x, weight, 1e-6)
        kernels.add_rms_norm(x, x.clone(), weight, 1e-6)
        kernels.swiglu(make(T, 2 * F, dtype=torch.bfloat16))
        qkv = make(T, H + 2 * KH, D, dtype=torch.bfloat16)
        q, k, v = qkv.split((H, KH, KH), dim=1)
        kernels.forest_attention(q, k, v, packed, 1.0)
        rows = torch.tensor(forest.final_rows, device=GPU)
        kernels.final_attention(q[rows], k, v, packed, 1.0)

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
