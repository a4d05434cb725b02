"""The kernel of attention by descriptors against its twin in fp64; what it reads and writes; when it is chosen."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from helpers.kernel_error import assert_close

from lastword import kernels
from lastword.batching.forest import plan_forests
from lastword.cli.main import main
from lastword.kernels import cpu as reference
from lastword.kernels.attention_plan import AttentionPlan
from lastword.kernels.gpu import block_sizes
from lastword.kernels.gpu import forest_attention as forest_attention_kernel
from lastword.kernels.gpu import forest_attention_descriptor as by_descriptors

DTYPES = (torch.float32, torch.float16)
BLOCK_M, BLOCK_N = 64, 32  # the interpreter's row of the block table
CPU = torch.device("cpu")

LENGTHS = {
    "one row": [1],
    "two rows": [2],
    "around a block of keys": [BLOCK_N - 1, BLOCK_N, BLOCK_N + 1],
    "around a tile": [BLOCK_M - 1, BLOCK_M, BLOCK_M + 1],
    "around two tiles": [2 * BLOCK_M + 1, 2 * BLOCK_M - 1],
    "many short": [1, 3, 2, 5, 1, 1, 7, 4],
    "long among short": [5, 3 * BLOCK_M + 9, 1, 40],
}
HEADS = [(1, 1, 32), (4, 2, 64), (4, 1, 64), (8, 1, 32), (6, 2, 16), (2, 1, 80), (2, 2, 128), (4, 1, 128)]  # fmt: skip


def plan_of(lengths: list[int]) -> AttentionPlan:
    """Texts of these lengths, none of which begins like another."""
    (forest,) = plan_forests([[i] * n for i, n in enumerate(lengths)], 10**6)
    return AttentionPlan(forest.segments, forest.final_rows, CPU)


def heads(plan: AttentionPlan, H: int, KH: int, D: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Views q, k, v of one fused projection, as the forward passes them."""
    generator = torch.Generator().manual_seed(H + D)
    rows = torch.randn(sum(plan.segments.length), H + 2 * KH, D, generator=generator)
    return list(rows.to(dtype).split((H, KH, KH), dim=1))


def check(lengths: list[int], H: int, KH: int, D: int, dtype: torch.dtype) -> None:
    plan, scale = plan_of(lengths), D**-0.5
    q, k, v = heads(plan, H, KH, D, dtype)
    assert by_descriptors.descriptors_fit(q, k, v, plan)
    ours = by_descriptors.forest_attention_descriptor(q, k, v, plan, scale)
    twin = reference.forest_attention_ref(q, k, v, plan, scale)
    exact = reference.forest_attention_ref(q.double(), k.double(), v.double(), plan, scale)
    assert_close(ours, twin, exact)


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
    assert by_descriptors.forest_attention_descriptor(q, k, v, plan, 1.0).shape == (0, 64)


def tile_by_tile(lengths: list[int]) -> Iterator[tuple[AttentionPlan, slice, slice]]:
    """A plan of one tile alone, the tile's rows, and its segment's, which are all that it may read."""
    plan = plan_of(lengths)
    for segment, first in plan.tiles(BLOCK_M).tolist():
        one = plan_of(lengths)
        one._tiles[BLOCK_M] = torch.tensor([[segment, first]], dtype=torch.int32)
        start, length = plan.segments.start[segment], plan.segments.length[segment]
        rows = slice(start + first, start + min(first + BLOCK_M, length))
        yield one, rows, slice(start, start + length)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_tile_reads_its_own_segment_only(value: float) -> None:
    lengths = [3, BLOCK_M + 9, 1, BLOCK_N]
    whole = plan_of(lengths)
    inputs = heads(whole, 2, 1, 32, torch.float32)
    before = by_descriptors.forest_attention_descriptor(*inputs, whole, SCALE)
    for plan, rows, own in tile_by_tile(lengths):
        spoilt = [torch.full_like(x, value) for x in inputs]
        for x, true in zip(spoilt, inputs, strict=True):
            x[own] = true[own]
        after = by_descriptors.forest_attention_descriptor(*spoilt, plan, SCALE)
        assert torch.equal(after[rows], before[rows])


def test_a_tile_writes_its_own_rows_only() -> None:
    lengths = [9, BLOCK_M + 9, 30]
    inputs = heads(plan_of(lengths), 2, 1, 32, torch.float32)
    for plan, rows, _ in tile_by_tile(lengths):
        out = by_descriptors.forest_attention_descriptor(*inputs, plan, SCALE)
        written = out.isfinite().any(dim=1).nonzero().flatten().tolist()
        assert written == list(range(rows.start, rows.stop))


PLAN = plan_of([BLOCK_M + 9, 20, 3])
Q, K, V = heads(PLAN, 4, 2, 32, torch.float32)
SCALE = 32**-0.5


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, **columns: list[int]
) -> torch.Tensor:
    """The kernel's result, with columns of the segments changed."""
    plan = AttentionPlan(replace(PLAN.segments, **columns), PLAN.final_rows, CPU)
    return by_descriptors.forest_attention_descriptor(q, k, v, plan, scale)


WRONG: dict[str, Callable[[], torch.Tensor]] = {
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
    twin = reference.forest_attention_ref(Q, K, V, PLAN, SCALE)
    assert_close(attend(Q, K, V, SCALE), twin, twin.double())


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_caught(name: str) -> None:
    twin = reference.forest_attention_ref(Q, K, V, PLAN, SCALE)
    with pytest.raises(AssertionError):
        assert_close(WRONG[name](), twin, twin.double())


def test_the_table_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    for module, name in (
        (by_descriptors, "forest_attention_descriptor"),
        (forest_attention_kernel, "forest_attention"),
    ):
        true = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, true=true, name=name: launched.append(name) or true(*args)
        )
    long, short = plan_of([BLOCK_M, BLOCK_M + 7]), plan_of([BLOCK_M, 7])
    for listed in ((), ("interpreter",)):
        monkeypatch.setattr(block_sizes, "DESCRIPTOR_DEFAULT", frozenset(listed))
        for plan in (long, short):
            q, k, v = heads(plan, 4, 2, 32, torch.float32)
            ours = kernels.forest_attention(q, k, v, plan, SCALE)
            twin = reference.forest_attention_ref(q, k, v, plan, SCALE)
            assert_close(ours, twin, twin.double())
    assert launched == [
        "forest_attention", "forest_attention", "forest_attention_descriptor", "forest_attention",
    ]  # fmt: skip


BENCH = [
    "bench", "kernels", "--device", "cpu", "--model", "tiny", "--tokens", "64",
    "--op", "forest_attention", "--beside", "descriptor",
]  # fmt: skip


def test_it_goes_through_the_benchmark(capfd) -> None:
    assert main(BENCH) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["descriptor"]] == ["right:"] * 4


def test_a_wrong_form_fails_the_benchmark(capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda q, *_: torch.zeros_like(q).flatten(1)  # noqa: E731
    monkeypatch.setattr(by_descriptors, "forest_attention_descriptor", wrong)
    assert main(BENCH) == 1
    assert capfd.readouterr().out.count("WRONG, not timed") == 4
