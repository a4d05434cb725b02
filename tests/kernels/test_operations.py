"""The operations refuse wrong arguments by name and choose the right implementation."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from helpers.project import run

from lastword import ConfigError, DeviceError, kernels
from lastword.batching.forest import plan_forests
from lastword.batching.packing import ModelInputs, Packer
from lastword.kernels import CpuPlan, KernelTables, arguments, attention_plan
from lastword.kernels.attention_plan import final_table, query_tiles, segment_table
from lastword.kernels.gpu.block_sizes import ATTENTION, attention_blocks, num_splits, tile_tokens

CPU = torch.device("cpu")
(FOREST,) = plan_forests([[7] * 24 + [1] * 30, [7] * 24 + [2], [3] * 5], 10**6)
PLAN = CpuPlan.of(FOREST.segments, FOREST.final_rows, CPU)
TABLES = KernelTables.of(FOREST.segments, FOREST.final_rows, CPU, tile_rows=16)
T = FOREST.tokens_computed
Q, K = torch.zeros(T, 4, 32), torch.zeros(T, 2, 32)
X, W = torch.zeros(3, 8), torch.ones(8)
IDS = torch.zeros(4, dtype=torch.int32)
HEADS = {"num_heads": 2, "num_kv_heads": 1, "eps": 1e-6}
QKV, HEAD, TABLE = torch.zeros(3, 4 * 32), torch.ones(32), torch.zeros(3, 16)
SHAPE, KIND, STRIDES = (
    "{} has the wrong shape",
    "{} has the wrong dtype or device",
    "{} has the wrong strides",
)

# A call, and the error's parts: where, what, got, expected.
REFUSED = {
    "width": (
        lambda: kernels.rms_norm(X[:, :7], W, 1e-6),
        "rms_norm", SHAPE.format("x"), "[3, 7]", "['any', 8]",
    ),
    "dtype": (
        lambda: kernels.rms_norm(X.half(), W, 1e-6),
        "rms_norm", KIND.format("x"), "torch.float16 on cpu", "torch.float32 on cpu",
    ),
    "integers": (
        lambda: kernels.rms_norm(X.int(), W.int(), 1e-6),
        "rms_norm", "wrong dtype", "torch.int32", "float32, float16 or bfloat16",
    ),
    "ids": (
        lambda: kernels.embed_rms_norm(W, X, W, 1e-6),
        "embed_rms_norm", KIND.format("ids"), "torch.float32 on cpu", "integers on cpu",
    ),
    "token rows": (
        lambda: kernels.embed_rms_norm(IDS, X[:, :7], W, 1e-6),
        "embed_rms_norm", SHAPE.format("table"), "[3, 7]", "['any', 8]",
    ),
    "table": (
        lambda: kernels.embed_rms_norm(IDS, X.int(), W, 1e-6),
        "embed_rms_norm", KIND.format("table"), "torch.int32 on cpu", "floating-point numbers on cpu",
    ),
    "residual": (
        lambda: kernels.add_rms_norm(X, X[:2], W, 1e-6),
        "add_rms_norm", SHAPE.format("residual"), "[2, 8]", "[3, 8]",
    ),
    "residual strides": (
        lambda: kernels.add_rms_norm(X, torch.zeros(8, 3).T, W, 1e-6),
        "add_rms_norm", STRIDES.format("residual"), "(1, 3)", "contiguous rows",
    ),
    "qkv": (
        lambda: kernels.qk_norm_rope(QKV[:, :96], HEAD, HEAD, TABLE, TABLE, **HEADS),
        "qk_norm_rope", SHAPE.format("qkv"), "[3, 96]", "['any', 128]",
    ),
    "tables": (
        lambda: kernels.qk_norm_rope(QKV, HEAD, HEAD, TABLE[:2], TABLE[:2], **HEADS),
        "qk_norm_rope", SHAPE.format("sin"), "[2, 16]", "[3, 16]",
    ),
    "half tables": (
        lambda: kernels.qk_norm_rope(QKV, HEAD, HEAD, TABLE.half(), TABLE.half(), **HEADS),
        "qk_norm_rope", "wrong layout of qkv or dtype of the tables",
        "qkv with strides (128, 1) and torch.float16 tables", "contiguous rows and float32 tables",
    ),
    "scale": (
        lambda: kernels.forest_attention(Q, K, K, PLAN, 0.0),
        "forest_attention", "wrong softmax scale", "0.0", "a number above 0",
    ),
    "k and v": (
        lambda: kernels.forest_attention(Q, K, K[:, :1], PLAN, 1.0),
        "forest_attention", SHAPE.format("v"), f"[{T}, 1, 32]", f"[{T}, 2, 32]",
    ),
    "rows": (
        lambda: kernels.forest_attention(Q, K[:5], K[:5], PLAN, 1.0),
        "forest_attention", SHAPE.format("k"), "[5, 2, 32]", f"[{T}, 'any', 32]",
    ),
    "heads apart": (
        lambda: kernels.forest_attention(Q.mT.contiguous().mT, K, K, PLAN, 1.0),
        "forest_attention", STRIDES.format("q"), "(128, 1, 4)", "(any, 32, 1)",
    ),
    "texts": (
        lambda: kernels.final_attention(Q[:2], K, K, PLAN, 1.0),
        "final_attention", SHAPE.format("q"), "[2, 4, 32]", "[3, 'any', 'any']",
    ),
    "odd": (
        lambda: kernels.swiglu(torch.zeros(3, 7)),
        "swiglu", SHAPE.format("gate_up"), "[3, 7]", "[T, 2F]",
    ),
    "tables on a CPU": (
        lambda: kernels.forest_attention(Q, K, K, TABLES, 1.0),
        "forest_attention", "wrong kind of attention plan", "KernelTables",
        "a CpuPlan, because PyTorch computes this",
    ),
    "tables on a CPU at the end": (
        lambda: kernels.final_attention(Q[:3], K, K, TABLES, 1.0),
        "final_attention", "wrong kind of attention plan", "KernelTables",
        "a CpuPlan, because PyTorch computes this",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named(name: str) -> None:
    call, *parts = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        call()
    error = caught.value
    assert [error.where, error.what, error.got, error.expected] == parts


@pytest.mark.parametrize("operation", [kernels.forest_attention, kernels.final_attention])
def test_dense_blocks_are_not_for_a_kernel(operation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q = Q if operation is kernels.forest_attention else Q[:3]
    with pytest.raises(ConfigError) as caught:
        operation(q, K, K, PLAN, 1.0)
    assert caught.value.where == operation.__name__
    assert caught.value.got == "CpuPlan"
    assert caught.value.expected == "KernelTables, because a Triton kernel computes this"


def test_triton_is_imported_at_the_first_launch(tmp_path) -> None:
    code = "import sys, lastword.kernels; print('triton' in sys.modules)"
    assert run(code, tmp_path).stdout.strip() == "False"


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    with pytest.raises(DeviceError) as caught:
        arguments._require_triton.__wrapped__()
    assert (caught.value.where, caught.value.what) == ("triton", "not installed")
    monkeypatch.undo()
    arguments._require_triton.__wrapped__()


def test_tiles_cover_every_row_once_and_longest_come_first() -> None:
    segments = FOREST.segments
    tiles = query_tiles(segments, 16).tolist()
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
    rows = segment_table(segments).tolist()
    assert rows == [
        list(row)
        for row in zip(segments.start, segments.length, segments.parent, segments.fork, strict=True)
    ]
    for (s, own), row in zip(
        final_table(segments, FOREST.final_rows).tolist(), FOREST.final_rows, strict=True
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
    with pytest.raises(ConfigError) as caught:
        tile_tokens(blocks, 33)
    assert (caught.value.what, caught.value.got) == ("too many query heads per KV head", "33")
    assert caught.value.expected == "at most 32 on this device in this dtype"
    assert caught.value.remedy == "Pass device='cpu'."


@pytest.mark.parametrize("keys", [1, 63, 256, 511, 512, 1500, 32768])
@pytest.mark.parametrize("programs", [1, 3, 8, 1000])
def test_splits_cover_the_path_and_the_first_is_never_empty(programs: int, keys: int) -> None:
    splits, keys_per_split = num_splits(CPU, programs=programs, keys=keys)
    assert splits * keys_per_split >= keys
    assert keys_per_split > 0
    assert splits == 1 or (keys >= 512 and programs < 16)


def test_plans_are_frozen_and_say_what_the_segments_say() -> None:
    for plan, form in ((PLAN, "blocks"), (TABLES, "tiles")):
        assert plan.num_finals == len(FOREST.final_rows)
        with pytest.raises(FrozenInstanceError):
            setattr(plan, form, ())
    segments = FOREST.segments
    assert TABLES.has_ancestors
    assert (TABLES.tile_rows, TABLES.rows_per_segment) == (16, T / len(segments.start))
    assert TABLES.longest_path == 24 + 30
    assert TABLES.tiles_of(16) is TABLES.tiles
    roots = replace(segments, parent=[-1] * len(segments.start))
    assert not KernelTables.of(roots, FOREST.final_rows, CPU, tile_rows=16).has_ancestors


def test_no_form_is_made_that_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes only dense blocks, a packed batch only tables."""
    dense, tables = (
        ("segment_blocks", "final_groups"),
        ("segment_table", "final_table", "query_tiles"),
    )

    def refuse(*_) -> None:
        raise AssertionError("made for nobody")

    with monkeypatch.context() as patch:
        for name in tables:
            patch.setattr(attention_plan, name, refuse)
            patch.setattr(f"lastword.batching.packing.{name}", refuse)
        ModelInputs.of(FOREST, CPU)
    for name in dense:
        monkeypatch.setattr(attention_plan, name, refuse)
    layout, buffer = Packer(CPU, torch.float32, group=2, layer_weights=1).pack(FOREST)
    layout.read(buffer)
