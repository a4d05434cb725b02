"""Compare the kernels of forest and final attention with the reference in fp64."""

import random

import pytest
import torch
from helpers.kernels.forest_paths import cpu_plan, one_forest, tables_of
from helpers.kernels.operations import assert_close

from lastword import kernels
from lastword.batching.packing import Packer
from lastword.kernels import CpuPlan, cpu, reference
from lastword.kernels.gpu import block_sizes
from lastword.kernels.gpu import forest_attention as forest_attention_kernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BLOCK_M, BLOCK_N = 64, 32  # the interpreter's entry in the table of block sizes

FORESTS: dict[str, list[list[int]]] = {
    "one row": [[1]],
    "two rows": [[1, 2]],
    "block of keys - 1": [[1] * (BLOCK_N - 1)],
    "block of keys": [[1] * BLOCK_N],
    "block of keys + 1": [[1] * (BLOCK_N + 1)],
    "blocks of rows": [[1] * (BLOCK_M - 1), [2] * BLOCK_M, [3] * (BLOCK_M + 1)],
    "many short": [[i, *range(i % 5)] for i in range(20)],
    "one prompt": [[7] * 24 + [i, i + 1] for i in range(6)],
    "one-row segments": [[7] * 9 + [i] for i in range(6)],
    "a text that ends inside": [[7] * 40 + [1], [7] * 12, [7] * 30, [7] * 40],
    "three levels": [[1] * 10 + [2] * 35 + [3] * 9, [1] * 10 + [2] * 35 + [4] * 20, [1] * 10 + [5] * 8, [6] * 3],
    "eight levels": [[level for level in range(depth) for _ in range(9)] + [100 + depth] for depth in range(1, 11)],
}  # fmt: skip
HEADS = [(1, 1, 32), (4, 2, 64), (4, 1, 32), (8, 1, 32), (6, 2, 32), (2, 1, 80), (2, 2, 128)]


def qkv(T: int, H: int, KH: int, D: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    rows = torch.randn(T, H + 2 * KH, D, generator=torch.Generator().manual_seed(T)).to(dtype)
    return rows[:, :H], rows[:, H:-KH], rows[:, -KH:]


def check_one(
    name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: CpuPlan, scale: float
) -> None:
    """Compare the kernel of one operation with the CPU implementation and the reference."""
    exact = getattr(reference, name)(q.double(), k.double(), v.double(), plan, scale)
    ours = getattr(kernels, name)(q, k, v, tables_of(plan, q, k), scale)
    assert_close(ours, getattr(cpu, name)(q, k, v, plan, scale), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORESTS)
def test_forests(name: str, dtype: torch.dtype) -> None:
    check(FORESTS[name], 4, 2, 32, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "KH", "D"), HEADS)
def test_heads(H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    check([[7] * 24 + [1] * 5, [7] * 24 + [2] * 11, [3] * 40], H, KH, D, dtype)


@pytest.mark.parametrize("seed", range(6))
def test_random_forests(seed: int) -> None:
    draw = random.Random(seed)
    texts = [
        [draw.randrange(2) for _ in range(draw.randrange(1, 60))] for _ in range(draw.randrange(1, 9))
    ]  # fmt: skip
    texts += [texts[0] + [5] * draw.randrange(20), texts[0][:10] + [6] * 12]
    check(texts, 4, 1, 32, torch.float32)


def check(texts: list[list[int]], H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    forest = one_forest(texts)
    plan = cpu_plan(forest)
    q, k, v = qkv(forest.tokens_computed, H, KH, D, dtype)
    check_one("forest_attention", q, k, v, plan, D**-0.5)
    check_one("final_attention", q[forest.final_rows].contiguous(), k, v, plan, D**-0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "texts",
    [[[1] * 600], [[1] * 1500], [[1] * 400 + [2] * 300, [1] * 400 + [3] * 9], [[1] * 700, [2] * 3]],
)
def test_final_attention_over_splits(texts: list[list[int]], dtype: torch.dtype) -> None:
    forest = one_forest(texts)
    _, k, v = qkv(forest.tokens_computed, 4, 2, 64, dtype)
    q = torch.randn(len(forest.final_rows), 4, 64, generator=torch.Generator().manual_seed(1))
    check_one("final_attention", q.to(dtype), k, v, cpu_plan(forest), 0.125)


PADDED = {
    "plain": [[1] * 40, [2] * 9],
    "tree": [[7] * 24 + [i] * (i + 3) for i in range(5)],
    "full": [[1] * 16],
}


# Tiles without rows divide 0 by 0, so NumPy warns; nothing of theirs is stored.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PADDED)
def test_tables_of_a_bucket(name: str, dtype: torch.dtype) -> None:
    """Unused tiles, an empty segment, padding rows and padding last-token rows: the others are unchanged."""
    H, KH, D = 4, 2, 32
    forest = one_forest(PADDED[name])
    packer = Packer(torch.empty(0).device, dtype, H // KH, layer_weights=1)
    packer._pin = False  # with ttsem the device seems to be a GPU
    layout, buffer = packer.pack(forest)
    inputs, plan, rows = layout.read(buffer), cpu_plan(forest), forest.tokens_computed
    assert layout.bucket is not None
    assert layout.has_ancestors == (name == "tree")
    q, k, v = qkv(layout.rows, H, KH, D, dtype)
    final_q = q[inputs.final_rows.long()]
    for operation, query, used in (
        ("forest_attention", q, rows),
        ("final_attention", final_q, len(forest.final_rows)),
    ):
        out = getattr(kernels, operation)(query, k, v, inputs.plan, D**-0.5)
        assert bool(out.isfinite().all()), "padding holds numbers"
        plain = query[:used], k[:rows], v[:rows]
        exact = getattr(reference, operation)(*(x.double() for x in plain), plan, D**-0.5)
        assert_close(out[:used], getattr(cpu, operation)(*plain, plan, D**-0.5), exact)


def test_logits_of_any_size() -> None:
    forest = one_forest([[7] * 24 + [1] * 30, [7] * 24 + [2]])
    q, k, v = qkv(forest.tokens_computed, 4, 2, 32, torch.float32)
    check_one("forest_attention", q * 300.0, k, v, cpu_plan(forest), 1.0)


# The shapes of a real forest's texts at the block sizes that ship; [1024] is several tiles and blocks of keys.
SM_90 = [
    [[1] * 1024],
    [[7] * 140 + [i] * (1 + 60 * i) for i in range(4)],
    [[i] * 3 for i in range(9)],
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("texts", SM_90, ids=["plain", "tree", "short"])
def test_block_sizes_of_sm_90(texts, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (block_sizes, forest_attention_kernel):
        monkeypatch.setattr(module, "architecture", lambda _: "sm_90")
    check(texts, 2, 1, 128, dtype)
