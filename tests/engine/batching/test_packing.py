"""Buckets and the buffer of a batch: every batch fits its bucket and reads back as written; no text reads padding."""

import gc
import random
import weakref
from pathlib import Path

import pytest
import torch
from helpers.kernels.stub_recorder import StubRecorder
from helpers.messages import refusal

from lastword import kernels
from lastword.batching.forest import Forest, plan_forests
from lastword.batching.packing import (
    BUCKET_ROWS,
    MAX_BUCKET_ROWS,
    Bucket,
    BucketLayout,
    ModelInputs,
    Packer,
    all_buckets,
    bucket_of,
    check_ids,
    recurring_rows,
)
from lastword.bench.checkpoint import make_checkpoint
from lastword.errors import ConfigError, InputError
from lastword.kernels import KernelTables
from lastword.kernels.gpu import block_sizes
from lastword.model.qwen3 import Model
from lastword.weights import Checkpoint, read_config

CPU = torch.device("cpu")
# A layer so small that padding costs nothing in any bucket.
PACKER = Packer(CPU, torch.float32, group=4, layer_weights=1)


def random_forests(seed: int) -> list[Forest]:
    """Use few distinct tokens, so that texts share prefixes of every kind."""
    draw = random.Random(seed)
    texts = [
        [draw.randrange(3) for _ in range(draw.choice((1, 2, 12, 30)))] + [9] * draw.choice((0, 0, 100))
        for _ in range(draw.choice((1, 2, 7, 60, 150)))
    ]  # fmt: skip
    return list(plan_forests([[7] * draw.choice((0, 24)) + text for text in texts], 2048))


FORESTS = [forest for seed in range(60) for forest in random_forests(seed)]


@pytest.mark.parametrize(
    ("rows", "finals", "bucket"),
    [
        (1, 1, (16, 1)), (16, 16, (16, 16)), (17, 2, (32, 8)), (36, 1, (64, 1)), (65, 9, (128, 64)),
        (128, 65, None), (129, 1, (256, 1)), (409, 1, None), (410, 1, (512, 1)), (819, 1, None),
        (820, 9, (1024, 64)), (1638, 8, None), (1639, 8, (2048, 8)), (2048, 64, (2048, 64)), (2049, 1, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tree", [False, True])
def test_buckets(rows: int, finals: int, tree: bool, bucket: tuple[int, int] | None) -> None:
    expected = bucket and Bucket(*bucket, tree)
    assert bucket_of(rows, finals, tree=tree, free_rows=256) == expected


def test_buckets_are_few_and_the_largest_comes_first() -> None:
    every = all_buckets(10**6)
    assert len(every) == len(set(every)) == 40
    assert every == sorted(every, key=lambda each: (-each.rows, -each.finals, not each.tree))
    asked = {
        bucket_of(rows, finals, tree=tree, free_rows=MAX_BUCKET_ROWS)
        for rows in range(1, MAX_BUCKET_ROWS + 1)
        for finals in range(1, min(64, rows) + 1)
        for tree in {False, finals > 1}
    }
    assert asked == set(every), "no batch has a bucket of its own, and no bucket is never used"


@pytest.mark.parametrize(
    ("most", "rows"), [(1, 16), (16, 16), (17, 32), (700, 1024), (2048, 2048), (16_384, 2048)]
)
def test_no_bucket_is_larger_than_any_batch(most: int, rows: int) -> None:
    assert {each.rows for each in all_buckets(most)} == {
        each for each in BUCKET_ROWS if each <= rows
    }


def test_padding_is_free_while_launching_takes_longer() -> None:
    """0.6B: 2·(16 + 8)·128 + 3·3072 columns of 1024 weights; 8B: 2·(32 + 8)·128 + 3·12288 of 4096."""
    free = [
        Packer(CPU, torch.float32, 1, C * (2 * heads * 128 + 3 * F)).free_rows
        for C, heads, F in ((1024, 24, 3072), (4096, 40, 12_288))
    ]
    assert free == [1271, 256]
    # a batch of 600 rows takes a bucket of 1,024 for the small model and none for the large one
    found = [bucket_of(600, 3, tree=False, free_rows=rows) for rows in free]
    assert found == [Bucket(1024, 8, tree=False), None]


def fill_layout(forest: Forest, *, pad: bool) -> tuple[BucketLayout, list[torch.Tensor]]:
    layout, buffer = PACKER.pack(forest, pad=pad)
    assert (buffer.dtype, buffer.numel()) == (torch.int32, layout.size)
    return layout, layout._parts(buffer)


def tables_of(forest: Forest, layout: BucketLayout) -> KernelTables:
    return KernelTables.of(forest.segments, forest.final_rows, CPU, tile_rows=layout.tile_rows)


@pytest.mark.parametrize("pad", [False, True])
def test_a_batch_reads_back_as_written(pad: bool) -> None:
    for forest in FORESTS:
        layout, parts = fill_layout(forest, pad=pad)
        pad_rows = layout.rows - forest.tokens_computed
        plan = tables_of(forest, layout)
        assert (layout.bucket is not None) == (pad and len(forest.final_rows) <= 64)
        written = [
            forest.ids, forest.positions, torch.tensor(forest.final_rows),
            plan.segment_table, plan.final_table, plan.tiles,
        ]  # fmt: skip
        for part, batch in zip(parts, written, strict=True):
            assert part.data_ptr() % 16 == 0, "Triton would compile once more"
            assert pad or len(part) == len(batch)
            if (
                not pad_rows or batch is not plan.tiles
            ):  # the tiles of padding rows are among the others
                assert torch.equal(part[: len(batch)], batch.to(torch.int32))
        assert plan.longest_path <= layout.longest_path
        assert layout.has_ancestors or not plan.has_ancestors


PADDED = [forest for forest in FORESTS if PACKER.pack(forest)[0].bucket is not None]


def test_padding_rows_are_a_segment_of_their_own() -> None:
    for forest in PADDED:
        layout, (ids, positions, final_rows, table, final_table, _) = fill_layout(forest, pad=True)
        texts, segments = len(forest.final_rows), len(forest.segments.start)
        rows = forest.tokens_computed
        padding = [[rows, layout.rows - rows, -1, 0]] if rows < layout.rows else []
        empty = [[0, 0, -1, 0]] * (layout.segments - segments - len(padding))
        assert segments <= texts, "a segment holds a text's final row"
        assert empty, "unused tiles have a segment without rows"
        assert table[segments:].tolist() == padding + empty
        first = forest.segments.start.index(0)
        assert final_table[texts:].tolist() == [[first, 1]] * (layout.finals - texts)
        assert not ids[rows:].any()
        assert not positions[rows:].any()
        assert not final_rows[texts:].any(), "row 0 is there in every batch"


def test_tiles_cover_every_row_once() -> None:
    """Padding rows too: what attention leaves unwritten would be read by the matmul that follows."""
    for forest in PADDED:
        layout, (_, _, _, table, _, tiles) = fill_layout(forest, pad=True)
        covered = [
            table[segment, 0] + row
            for segment, first in tiles.tolist()
            for row in range(first, min(first + layout.tile_rows, int(table[segment, 1])))
        ]
        assert sorted(map(int, covered)) == list(range(layout.rows))


def test_batches_of_a_bucket_have_one_layout() -> None:
    layouts: dict[Bucket | None, BucketLayout] = {}
    for forest in PADDED:
        layout, _ = PACKER.pack(forest)
        finals, tree = len(forest.final_rows), forest.segments.has_ancestors()
        bucket = bucket_of(forest.tokens_computed, finals, tree=tree, free_rows=MAX_BUCKET_ROWS)
        assert layouts.setdefault(bucket, layout) == layout
        assert layout.has_ancestors == tree, "texts without a common prefix take the plain form"
    assert len(layouts) > 10
    assert {bucket.tree for bucket in layouts} == {False, True}


def test_a_plan_read_back_has_the_sizes_of_its_layout() -> None:
    layout, buffer = PACKER.pack(PADDED[0])
    inputs = layout.read(buffer)
    plan = inputs.plan
    assert inputs.ids.data_ptr() == buffer.data_ptr(), "a view"
    assert plan.num_finals == layout.finals == len(inputs.final_rows)
    assert len(plan.tiles_of(layout.tile_rows)) == layout.tiles
    assert (plan.has_ancestors, plan.longest_path) == (layout.has_ancestors, layout.rows)
    with pytest.raises(ConfigError) as caught:
        plan.tiles_of(7)
    error = caught.value
    assert (error.where, error.what) == ("attention plan", "the plan has a different tile size")
    assert error.got == "a kernel with 7 rows per tile"
    assert error.expected == f"{layout.tile_rows} rows, as in the plan"


def test_tiles_depend_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile holds the rows of all G heads of a group."""
    monkeypatch.setattr(block_sizes, "architecture", lambda _: "sm_90")
    long = next(plan_forests([[1] * 3000], 4096))
    assert Packer(CPU, torch.bfloat16, group=4, layer_weights=1).pack(long)[0].tile_rows == 32


def test_a_model_with_graphs_is_freed_with_its_last_reference(tiny_checkpoint: Path) -> None:
    """Gigabytes of GPU memory must be freed without the garbage collector."""
    config = read_config(tiny_checkpoint)
    model = Model(Checkpoint(tiny_checkpoint, config), config, CPU, torch.float32)
    model.use_packing(StubRecorder())
    known = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert known() is None
    finally:
        gc.enable()


def test_a_packed_plan_is_not_for_the_cpu_implementation() -> None:
    layout, buffer = PACKER.pack(FORESTS[0])
    plan = layout.read(buffer).plan
    k = torch.zeros(layout.rows, 1, 8)
    for operation, q in (
        (kernels.forest_attention, torch.zeros(layout.rows, 4, 8)),
        (kernels.final_attention, torch.zeros(layout.finals, 4, 8)),
    ):
        with pytest.raises(ConfigError) as caught:
            operation(q, k, k, plan, 1.0)
        error = caught.value
        assert (error.where, error.got) == (operation.__name__, "KernelTables")
        assert error.what == "wrong kind of attention plan"
        assert error.expected == "a CpuPlan, because PyTorch computes this"


@pytest.mark.parametrize("bad", [-1, 10, 2**31 - 1, 2**32 - 1])
def test_an_id_beyond_the_table_never_reaches_the_model(bad: int, tmp_path: Path) -> None:
    (forest,) = plan_forests([[3, 9], [3, 4]], 100)
    check_ids(forest, 10)
    forest.ids[1] = bad if bad < 2**31 else bad - 2**32
    got = f"id {bad if bad < 2**31 else bad - 2**32}"
    with refusal(InputError, where="token ids", got=got, expected="0 to 9"):
        check_ids(forest, 10)
    config = read_config(make_checkpoint(tmp_path, vocab_size=1000))
    model = Model(Checkpoint(tmp_path, config), config, CPU, torch.float32)
    forest.ids[1] = 1000
    with refusal(InputError, where="token ids", got="id 1000", expected="0 to 999"):
        model.forward(forest)


def test_row_counts_of_a_cpu_recur() -> None:
    sizes = [recurring_rows(rows) for rows in range(MAX_BUCKET_ROWS + 1)]
    assert sizes[:2] == [0, 1]
    assert all(rows <= size <= max(rows + 7, rows * 1.0625) for rows, size in enumerate(sizes))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 90
    assert recurring_rows(MAX_BUCKET_ROWS + 1) == MAX_BUCKET_ROWS + 1


def test_padding_changes_no_vector_on_a_cpu(tmp_path: Path) -> None:
    config = read_config(make_checkpoint(tmp_path))
    model = Model(Checkpoint(tmp_path, config), config, CPU, torch.float32)
    for forest in FORESTS[:30]:
        exact, padded = (ModelInputs.of(forest, CPU, pad=pad) for pad in (False, True))
        count = len(forest.final_rows)
        assert len(padded.ids) == recurring_rows(len(exact.ids))
        with torch.inference_mode():
            states = model._forward(padded)
            assert len(states) == recurring_rows(count)
            torch.testing.assert_close(states[:count], model._forward(exact), rtol=0, atol=2e-6)
        torch.testing.assert_close(model.forward(forest), states[:count], rtol=0, atol=0)


def test_attention_gives_zeros_for_padding() -> None:
    forest = FORESTS[0]
    inputs = ModelInputs.of(forest, CPU, pad=True)
    rows, finals = len(inputs.ids) + 3, len(inputs.final_rows)
    q, k = torch.randn(rows, 4, 8), torch.full((rows, 2, 8), torch.nan)
    k[: forest.tokens_computed] = 0.5
    every = kernels.forest_attention(q, k, k, inputs.plan, 1.0)
    assert every[: forest.tokens_computed].isfinite().all()
    assert not every[forest.tokens_computed :].any()
    last = kernels.final_attention(q[:finals], k, k, inputs.plan, 1.0)
    assert not last[len(forest.final_rows) :].any()
