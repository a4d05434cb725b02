"""Attention by descriptors on the device against the reference, in a file that runs last: a hang costs nothing else."""

import json
import random
from pathlib import Path

import pytest
import torch
import triton
from helpers.kernels.forest_paths import cpu_plan, one_forest
from helpers.kernels.operations import assert_close
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.bench.kernels import descriptor
from lastword.bench.shapes import SIZES
from lastword.cli.main import main
from lastword.kernels import cpu, reference
from lastword.kernels.gpu.block_sizes import architecture

GPU = torch.device("cuda")
DTYPES = (torch.bfloat16, torch.float16)
LENGTHS = {
    "one row": [1],
    "around a block": [127, 128, 129],
    "half a tile": [63, 64, 65],
    "many": [1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 511, 700],
    "short": [i % 17 + 1 for i in range(300)],
    "long": [4096, 4095],
}
HEADS = [
    *((G, 1, D) for D in (64, 128) for G in (1, 2, 4, 8)),
    (5, 1, 128), (2, 2, 80), (2, 1, 32),
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_of_its_devices() -> None:
    if architecture(GPU) not in ("sm_90", "sm_100"):
        pytest.skip(
            f"attention by descriptors is for sm_90 and sm_100, this is {architecture(GPU)}"
        )


def forest_of(lengths: list[int]) -> Forest:
    """Texts of these lengths, none of which begins like another."""
    return one_forest([[i] * n for i, n in enumerate(lengths)])


def heads(T: int, H: int, KH: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    """Views q, k, v of one fused projection, as the forward passes them."""
    generator = torch.Generator(GPU).manual_seed(T + H)
    fused = torch.randn(T, H + 2 * KH, D, generator=generator, device=GPU)
    return list(fused.to(dtype).split((H, KH, KH), dim=1))


def attend(forest: Forest, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    tables = descriptor.descriptor_tables(q, forest.segments, forest.final_rows)
    return descriptor.forest_attention_descriptor(q, k, v, tables, scale)


def check(lengths: list[int], H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    forest, scale = forest_of(lengths), D**-0.5
    plan = cpu_plan(forest, GPU)
    q, k, v = heads(sum(lengths), H, KH, D, dtype)
    assert descriptor.descriptors_fit(q, k, v, tree=forest.segments.has_ancestors())
    ours = attend(forest, q, k, v, scale)
    exact = reference.forest_attention(q.double(), k.double(), v.double(), plan, scale)
    assert_close(ours, cpu.forest_attention(q, k, v, plan, scale), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["0.6B", "4B"])  # the 8B has the 4B's heads
@pytest.mark.parametrize("name", LENGTHS)
def test_published_shapes(name: str, model: str, dtype: torch.dtype) -> None:
    _, _, _, H, KH, D = SIZES[model]
    check(LENGTHS[name], H, KH, D, dtype)


@pytest.mark.parametrize(("H", "KH", "D"), HEADS)
def test_other_heads(H: int, KH: int, D: int) -> None:
    check(LENGTHS["many"], H, KH, D, torch.bfloat16)


@pytest.mark.parametrize("seed", range(20))
def test_random_lengths(seed: int) -> None:
    draw = random.Random(seed)
    check([draw.randrange(1, 600) for _ in range(draw.randrange(1, 40))], 32, 8, 128, DTYPES[0])


def test_runs_agree_bit_for_bit() -> None:
    """Warp groups that miss a barrier would give another result now and then."""
    lengths = LENGTHS["many"] * 4
    forest = forest_of(lengths)
    q, k, v = heads(sum(lengths), 32, 8, 128, torch.bfloat16)
    first = attend(forest, q, k, v, 0.1)
    for _ in range(200):
        assert torch.equal(attend(forest, q, k, v, 0.1), first)


def test_neighbours_are_never_seen() -> None:
    lengths = LENGTHS["many"]
    forest = forest_of(lengths)
    q, k, v = heads(sum(lengths), 8, 2, 128, torch.bfloat16)
    before = attend(forest, q, k, v, 0.1)
    for start, length in zip(forest.segments.start, forest.segments.length, strict=True):
        own = slice(start, start + length)
        spoilt = [torch.full_like(x, torch.nan) for x in (q, k, v)]
        for x, true in zip(spoilt, (q, k, v), strict=True):
            x[own] = true[own]
        after = attend(forest, *spoilt, 0.1)
        assert torch.equal(after[own], before[own])
        assert after.isfinite().all(dim=1).sum() == length


def test_offsets_beyond_31_bits() -> None:
    rows, own, H, KH, D = 600_000, 120, 32, 8, 128  # 3.7e9 elements
    forest = forest_of([own] * (rows // own))
    fused = torch.zeros(rows, H + 2 * KH, D, dtype=torch.bfloat16, device=GPU)
    last = slice(rows - own, rows)
    fused[last] = torch.cat(heads(own, H, KH, D, torch.bfloat16), dim=1)
    q, k, v = fused.split((H, KH, KH), dim=1)
    ours = attend(forest, q, k, v, D**-0.5)
    assert not ours[: rows - own].any()
    tail, plan = [x[last] for x in (q, k, v)], cpu_plan(forest_of([own]), GPU)
    exact = reference.forest_attention(*(x.double() for x in tail), plan, D**-0.5)
    assert_close(ours[last], cpu.forest_attention(*tail, plan, D**-0.5), exact)


def test_one_binary_for_all_batches() -> None:
    kernel = descriptor._forest_attention_descriptor_kernel
    draw = random.Random(0)

    def binaries() -> int:
        return sum(len(cache[0]) for cache in kernel.device_caches.values())

    check([300], 16, 8, 128, torch.bfloat16)
    warm = binaries()
    for _ in range(50):
        lengths = [draw.randrange(1, 400) for _ in range(draw.randrange(1, 9))]
        check(lengths, 16, 8, 128, torch.bfloat16)
    assert binaries() == warm > 0


def test_an_allocator_of_the_callers_stays() -> None:
    from triton.runtime._allocation import _allocator

    before = _allocator.get()
    mine = lambda *_: None  # noqa: E731
    triton.set_allocator(mine)
    try:
        check([300], 16, 8, 128, torch.bfloat16)
        assert _allocator.get() is mine
    finally:
        triton.set_allocator(before)


def test_in_a_captured_graph() -> None:
    forest = forest_of(LENGTHS["many"])
    q, k, v = heads(sum(LENGTHS["many"]), 16, 8, 128, torch.bfloat16)
    tables = descriptor.descriptor_tables(q, forest.segments, forest.final_rows)
    expected = descriptor.forest_attention_descriptor(q, k, v, tables, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = descriptor.forest_attention_descriptor(q, k, v, tables, 0.1)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)


def test_the_benchmark_runs_it(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--op", "forest_attention", "--model", "0.6B", "--tokens", "1024", "--rep-ms", "10"]
    words += ["--beside", "descriptor", "--json", str(out)]
    assert main(["bench", "kernels", *words]) == 0
    _, *rows = (json.loads(line) for line in out.read_text().splitlines())
    found = [row for row in rows if row["by"] == "descriptor"]
    assert [row["right"] for row in found if "shared" not in row["title"]] == [True] * 4
