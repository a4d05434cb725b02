"""Compare the descriptor-based candidate with the fp64 reference, check its reads and writes, and that it is unused."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from helpers.kernels.forest_paths import cpu_plan, one_forest, tables_of
from helpers.kernels.operations import assert_close

from lastword import kernels
from lastword.bench.kernels import descriptor
from lastword.bench.kernels.baselines import CHANGES
from lastword.cli.main import main
from lastword.kernels import CpuPlan, KernelTables, cpu, reference
from lastword.kernels.gpu import forest_attention as forest_attention_kernel

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
if os.environ.get("PROVE_KERNELS"):
    DTYPES = DTYPES[1:]  # ttsem executes the form for sm_90, which does not take fp32
BLOCK_M, BLOCK_N = 64, 32  # the interpreter's entry in the table of block sizes

LENGTHS = {
    "one row": [1],
    "two rows": [2],
    "around a block of keys": [BLOCK_N - 1, BLOCK_N, BLOCK_N + 1],
    "around a tile": [BLOCK_M - 1, BLOCK_M, BLOCK_M + 1],
    "around two tiles": [2 * BLOCK_M + 1, 2 * BLOCK_M - 1],
    "many short": [1, 3, 2, 5, 1, 1, 7, 4],
    "long among short": [5, 3 * BLOCK_M + 9, 1, 40],
    "around a tile of sm_90": [127, 128, 129],
}
HEADS = [(1, 1, 32), (4, 2, 64), (4, 1, 64), (8, 1, 32), (6, 2, 16), (2, 1, 80), (2, 2, 128), (4, 1, 128)]  # fmt: skip


def plan_of(lengths: list[int]) -> CpuPlan:
    """Return texts of these lengths without common prefixes."""
    return cpu_plan(one_forest([[i] * n for i, n in enumerate(lengths)]))


def by_head(plan: CpuPlan, q: torch.Tensor) -> KernelTables:
    return descriptor.descriptor_tables(q, plan.segments, plan.final_rows)


def heads(plan: CpuPlan, H: int, KH: int, D: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return q, k and v as views of one fused projection, like in the forward pass."""
    generator = torch.Generator().manual_seed(H + D)
    rows = torch.randn(sum(plan.segments.length), H + 2 * KH, D, generator=generator)
    return list(rows.to(dtype).split((H, KH, KH), dim=1))


def check(lengths: list[int], H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    plan, scale = plan_of(lengths), D**-0.5
    q, k, v = heads(plan, H, KH, D, dtype)
    assert descriptor.descriptors_fit(q, k, v, tree=plan.segments.has_ancestors())
    ours = descriptor.forest_attention_descriptor(q, k, v, by_head(plan, q), scale)
    assert_right(ours, q, k, v, plan, scale)


def assert_right(
    ours: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: CpuPlan,
    scale: float,
) -> None:
    exact = reference.forest_attention(q.double(), k.double(), v.double(), plan, scale)
    assert_close(ours, cpu.forest_attention(q, k, v, plan, scale), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LENGTHS)
def test_lengths(name: str, dtype: torch.dtype) -> None:
    check(LENGTHS[name], 2, 1, 32, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "KH", "D"), HEADS)
def test_heads(H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    check([BLOCK_M + 9, 5], H, KH, D, dtype)


def test_no_rows() -> None:
    plan = plan_of([1])
    q, k, v = (x[:0] for x in heads(plan, 2, 1, 32, torch.float32))
    tables = by_head(plan, q)
    assert descriptor.forest_attention_descriptor(q, k, v, tables, 1.0).shape == (0, 64)


def tile_by_tile(whole: KernelTables) -> Iterator[tuple[KernelTables, slice, slice]]:
    """Return the tables of a single tile, the tile's rows, and its segment's rows, the only ones that it may read."""
    for i, (segment, first) in enumerate(whole.tiles.tolist()):
        start, length, *_ = whole.segment_table[segment].tolist()
        rows = slice(start + first, start + min(first + BLOCK_M, length))
        yield replace(whole, tiles=whole.tiles[i : i + 1]), rows, slice(start, start + length)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_tile_reads_its_own_segment_only(value: float) -> None:
    plan = plan_of([3, BLOCK_M + 9, 1, BLOCK_N])
    inputs = heads(plan, 2, 1, 32, torch.float32)
    whole = by_head(plan, inputs[0])
    before = descriptor.forest_attention_descriptor(*inputs, whole, SCALE)
    for one, rows, own in tile_by_tile(whole):
        spoilt = [torch.full_like(x, value) for x in inputs]
        for x, true in zip(spoilt, inputs, strict=True):
            x[own] = true[own]
        after = descriptor.forest_attention_descriptor(*spoilt, one, SCALE)
        assert torch.equal(after[rows], before[rows])


def test_a_tile_writes_its_own_rows_only() -> None:
    plan = plan_of([9, BLOCK_M + 9, 30])
    inputs = heads(plan, 2, 1, 32, torch.float32)
    for one, rows, _ in tile_by_tile(by_head(plan, inputs[0])):
        out = descriptor.forest_attention_descriptor(*inputs, one, SCALE)
        written = out.isfinite().any(dim=1).nonzero().flatten().tolist()
        assert written == list(range(rows.start, rows.stop))


PLAN = plan_of([BLOCK_M + 9, 20, 3])
Q, K, V = heads(PLAN, 4, 2, 32, torch.float32)
SCALE = 32**-0.5


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, **columns: list[int]
) -> torch.Tensor:
    """Return the kernel's result with columns of the segments changed."""
    segments = replace(PLAN.segments, **columns)
    tables = descriptor.descriptor_tables(q, segments, PLAN.final_rows)
    return descriptor.forest_attention_descriptor(q, k, v, tables, scale)


MUTANTS: dict[str, Callable[[], torch.Tensor]] = {
    "scale off by 1 %": lambda: attend(Q, K, V, SCALE * 1.01),
    "wrong KV head": lambda: attend(Q, K.flip(1).contiguous(), V.flip(1).contiguous(), SCALE),
    "keys and values swapped": lambda: attend(Q, V, K, SCALE),
    "keys one row late": lambda: attend(Q, K.roll(1, 0), V, SCALE),
    "queries one row late": lambda: attend(Q.roll(1, 0), K, V, SCALE),
    "a segment one row short": lambda: attend(
        Q, K, V, SCALE, length=[n - (n == 20) for n in PLAN.segments.length]
    ),
    "segments run together": lambda: attend(
        Q, K, V, SCALE,
        start=[0], length=[len(Q)], parent=[-1], fork=[0], depth=[0],
    ),
}  # fmt: skip


def test_the_right_kernel_passes() -> None:
    assert_right(attend(Q, K, V, SCALE), Q, K, V, PLAN, SCALE)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    with pytest.raises(AssertionError):
        assert_right(MUTANTS[name](), Q, K, V, PLAN, SCALE)


def test_nothing_selects_it(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    for module, name in (
        (descriptor, "forest_attention_descriptor"),
        (forest_attention_kernel, "forest_attention"),
    ):
        true = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, true=true, name=name: launched.append(name) or true(*args)
        )
    for plan in (plan_of([BLOCK_M, BLOCK_M + 7]), plan_of([BLOCK_M, 7])):
        q, k, v = heads(plan, 4, 2, 32, torch.float32)
        ours = kernels.forest_attention(q, k, v, tables_of(plan, q, k), SCALE)
        assert_right(ours, q, k, v, plan, SCALE)
    assert launched == ["forest_attention", "forest_attention"]


BENCH = [
    "bench", "kernels", "--device", "cpu", "--model", "tiny", "--tokens", "64",
    "--op", "forest_attention", "--beside", "descriptor",
]  # fmt: skip


def test_it_goes_through_the_benchmark(capfd) -> None:
    assert main([*BENCH, *CHANGES]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    for form in ("descriptor", *CHANGES):
        assert [line[1] for line in lines if line[:1] == [form]] == ["right:"] * 4


def test_a_wrong_candidate_fails_the_benchmark(capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda q, *_: torch.zeros_like(q).flatten(1)  # noqa: E731
    monkeypatch.setattr(descriptor, "forest_attention_descriptor", wrong)
    assert main(BENCH) == 1
    assert capfd.readouterr().out.count("WRONG, not timed") == 4
