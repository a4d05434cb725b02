"""What the operations refuse, and which implementation they choose."""

from dataclasses import replace

import pytest
import torch

from lastword import ConfigError, DeviceError, kernels
from lastword.batching.forest import plan_forests
from lastword.kernels import arguments
from lastword.kernels.attention_plan import AttentionPlan
from lastword.kernels.gpu.block_sizes import ATTENTION, attention_blocks, num_splits, tile_tokens
from lastword.kernels.gpu.tables import final_table, query_tiles, segment_table

CPU = torch.device("cpu")
(FOREST,) = plan_forests([[7] * 24 + [1] * 30, [7] * 24 + [2], [3] * 5], 10**6)
PLAN = AttentionPlan(FOREST.segments, FOREST.final_rows, CPU)
T = FOREST.tokens_computed
Q, K = torch.zeros(T, 4, 32), torch.zeros(T, 2, 32)
X, W = torch.zeros(3, 8), torch.ones(8)
IDS = torch.zeros(4, dtype=torch.int32)
HEADS = {"num_heads": 2, "num_kv_heads": 1, "eps": 1e-6}
QKV, HEAD, TABLE = torch.zeros(3, 4 * 32), torch.ones(32), torch.zeros(3, 16)

REFUSED = {
    "width": (lambda: kernels.rms_norm(X[:, :7], W, 1e-6), "rms_norm: x has the wrong shape; got [3, 7]"),
    "dtype": (lambda: kernels.rms_norm(X.half(), W, 1e-6), "rms_norm: x is of another kind; got torch.float16"),
    "integers": (lambda: kernels.rms_norm(X.int(), W.int(), 1e-6), "rms_norm: wrong dtype; got torch.int32"),
    "ids": (lambda: kernels.embed_rms_norm(W, X, W, 1e-6), "embed_rms_norm: ids is of another kind; got torch.float32"),
    "token rows": (lambda: kernels.embed_rms_norm(IDS, X[:, :7], W, 1e-6), "table has the wrong shape; got [3, 7]"),
    "table": (lambda: kernels.embed_rms_norm(IDS, X.int(), W, 1e-6), "table is of another kind; got torch.int32"),
    "residual": (lambda: kernels.add_rms_norm(X, X[:2], W, 1e-6), "add_rms_norm: residual has the wrong shape"),
    "residual strides": (lambda: kernels.add_rms_norm(X, torch.zeros(8, 3).T, W, 1e-6), "wrong strides"),
    "qkv": (lambda: kernels.qk_norm_rope(QKV[:, :96], HEAD, HEAD, TABLE, TABLE, **HEADS), "qkv has the wrong"),
    "tables": (lambda: kernels.qk_norm_rope(QKV, HEAD, HEAD, TABLE[:2], TABLE[:2], **HEADS), "sin has the wrong shape"),
    "half tables": (lambda: kernels.qk_norm_rope(QKV, HEAD, HEAD, TABLE.half(), TABLE.half(), **HEADS), "float32 t"),
    "k and v": (lambda: kernels.forest_attention(Q, K, K[:, :1], PLAN, 1.0), "v has the wrong shape"),
    "rows": (lambda: kernels.forest_attention(Q, K[:5], K[:5], PLAN, 1.0), "k has the wrong shape"),
    "heads apart": (lambda: kernels.forest_attention(Q.mT.contiguous().mT, K, K, PLAN, 1.0), "q has the wrong strides"),
    "texts": (lambda: kernels.final_attention(Q[:2], K, K, PLAN, 1.0), "q has the wrong shape; got [2"),
    "odd": (lambda: kernels.swiglu(torch.zeros(3, 7)), "swiglu: gate_up has the wrong shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        call()
    assert message in str(error.value)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(DeviceError, match="no C compiler"):
        arguments._require_compiler.__wrapped__()
    monkeypatch.setenv("CC", "/usr/bin/cc")
    arguments._require_compiler.__wrapped__()


def test_tiles_cover_every_row_once_and_longest_come_first() -> None:
    segments = FOREST.segments
    tiles = query_tiles(segments, 16, CPU).tolist()
    covered = sorted(
        segments.start[s] + row
        for s, first in tiles
        for row in range(first, min(first + 16, segments.length[s]))
    )
    assert covered == list(range(T))
    keys = [segments.depth[s] + min(first + 16, segments.length[s]) for s, first in tiles]
    assert keys == sorted(keys, reverse=True)


def test_tables_say_what_the_segments_say() -> None:
    segments = FOREST.segments
    rows = segment_table(segments, CPU).tolist()
    assert rows == [
        list(row)
        for row in zip(segments.start, segments.length, segments.parent, segments.fork, strict=True)
    ]
    for (s, own), row in zip(
        final_table(segments, FOREST.final_rows, CPU).tolist(), FOREST.final_rows, strict=True
    ):
        assert segments.start[s] + own - 1 == row
        assert 1 <= own <= segments.length[s]


def test_depth_is_the_sum_of_forks() -> None:
    segments = FOREST.segments
    for s in range(len(segments.start)):
        depth, at = 0, s
        while segments.parent[at] >= 0:
            depth, at = depth + segments.fork[at], segments.parent[at]
        assert segments.depth[s] == depth


def test_block_rows_are_chosen_by_kind() -> None:
    table = ATTENTION["sm_90"]
    bf16 = torch.bfloat16
    for name, kind in {
        "plain": {"dtype": bf16, "tree": False, "rows": 4096},
        "tree": {"dtype": bf16, "tree": True, "rows": 4096},
        "short": {"dtype": bf16, "tree": True, "rows": 64},
        "float32": {"dtype": torch.float32, "tree": True, "rows": 64},
    }.items():
        chosen = attention_blocks(kind["dtype"], "sm_90", tree=kind["tree"], rows=kind["rows"])
        assert chosen == {k: v for k, v in table[name]._asdict().items() if k != "source"}


def test_a_tile_holds_every_head_of_a_token() -> None:
    blocks = attention_blocks(torch.float32, "sm_90", tree=False, rows=4096)
    assert [tile_tokens(blocks, group) for group in (1, 5, 32)] == [32, 6, 1]
    with pytest.raises(ConfigError, match="heads a KV head; got 33, expected 32 at most"):
        tile_tokens(blocks, 33)


@pytest.mark.parametrize("keys", [1, 63, 256, 511, 512, 1500, 32768])
@pytest.mark.parametrize("programs", [1, 3, 8, 1000])
def test_splits_cover_the_path_and_the_first_is_never_empty(programs: int, keys: int) -> None:
    splits, keys_per_split = num_splits(CPU, programs=programs, keys=keys)
    assert splits * keys_per_split >= keys
    assert keys_per_split > 0
    assert splits == 1 or (keys >= 512 and programs < 16)


def test_the_plan_makes_each_form_once() -> None:
    plan = AttentionPlan(FOREST.segments, FOREST.final_rows, CPU)
    assert plan.blocks is plan.blocks
    assert plan.tiles(16) is plan.tiles(16)
    assert plan.has_ancestors
    roots = replace(FOREST.segments, parent=[-1] * len(FOREST.segments.start))
    assert not AttentionPlan(roots, FOREST.final_rows, CPU).has_ancestors
