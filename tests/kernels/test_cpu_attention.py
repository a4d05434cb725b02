"""Compare forest attention on a CPU with the plain formula, for every kind of block."""

import pytest
import torch
from torch import Tensor

from lastword.kernels import CpuPlan, Segments, cpu, reference
from lastword.kernels.attention_plan import TILE_ROWS

D, SCALE = 16, 0.3
# (own rows, parent, rows of the parent before the fork)
FORESTS = {
    "one row": [(1, -1, 0)],
    "a tile, less and more": [(own, -1, 0) for own in (TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1)],
    "equal texts side by side": [(9, -1, 0)] * 5 + [(4, -1, 0)] + [(9, -1, 0)] * 2,
    "equal texts of several tiles": [(2 * TILE_ROWS + 7, -1, 0)] * 3,
    "forks of equal shape": [(24, -1, 0), (6, 0, 20), (6, 0, 20), (1, 0, 20), (6, 1, 3)],
    "a fork of several tiles": [(30, -1, 0), (3 * TILE_ROWS - 1, 0, 11), (1, 1, TILE_ROWS + 5)],
    "an empty text": [(0, -1, 0), (3, -1, 0), (0, 1, 2)],
    "a text for SDPA": [(5, -1, 0), (cpu._SDPA_ROWS + 1, -1, 0), (8, 1, 700)],
}


def segments_of(forest: list[tuple[int, int, int]]) -> Segments:
    start, depth = [], []
    for _, parent, fork in forest:
        start.append(sum(own for own, *_ in forest[: len(start)]))
        depth.append(depth[parent] + fork if parent >= 0 else 0)
    own, parent, fork = (list(column) for column in zip(*forest, strict=True))
    return Segments(start, own, parent, fork, depth)


def visible(segments: Segments) -> Tensor:
    """Return which rows each row attends to, [T, T], by walking up from every segment."""
    total = sum(segments.length)
    sees = torch.zeros(total, total, dtype=torch.bool)
    for s, (start, own) in enumerate(zip(segments.start, segments.length, strict=True)):
        rows = slice(start, start + own)
        sees[rows, rows] = torch.ones(own, own, dtype=torch.bool).tril()
        at = s
        while segments.parent[at] >= 0:
            above = segments.parent[at]
            sees[rows, segments.start[above] : segments.start[above] + segments.fork[at]] = True
            at = above
    return sees


def written_out(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    weights = logits.masked_fill(~sees, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)


def test_few_keys_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastword.kernels.attention_plan._KV_ROWS", 20)
    for name in ("equal texts side by side", "forks of equal shape"):
        test_it_is_the_formula(name, (4, 2))


@pytest.mark.parametrize(("amx", "bf16"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("name", FORESTS)
def test_every_processor(name: str, amx: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    test_it_is_the_formula(name, (4, 2))


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("name", FORESTS)
def test_it_is_the_formula(name: str, heads: tuple[int, int]) -> None:
    num_heads, kv_heads = heads
    segments = segments_of(FORESTS[name])
    rows = sum(segments.length)
    torch.manual_seed(0)
    heads_of_rows = torch.randn(rows, num_heads + 2 * kv_heads, D, dtype=torch.float64)
    q, k, v = heads_of_rows.split([num_heads, kv_heads, kv_heads], dim=1)
    plan = CpuPlan.of(segments, [rows - 1], torch.device("cpu"))
    truth = written_out(q, k, v, visible(segments))
    slow = reference.forest_attention(q, k, v, plan, SCALE)
    torch.testing.assert_close(slow, truth, rtol=0, atol=1e-12)
    ours = cpu.forest_attention(q, k, v, plan, SCALE)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    for dtype, atol in ((torch.float32, 2e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)):
        rounded = [x.to(dtype) for x in (q, k, v)]
        truth = written_out(*(x.double() for x in rounded), visible(segments))
        ours = cpu.forest_attention(*rounded, plan, SCALE)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=atol)
