"""The timed cases: bytes and operations by hand and by brute force, repeatable inputs, the stated workloads."""

import pytest
import torch

from lastword.bench.kernels.cases import AttentionBatch, Case, attention_batches, cases
from lastword.bench.options import OPS
from lastword.kernels import Segments

CPU = torch.device("cpu")


def one(op: str, title: str = "", tokens: int = 8, dtype: torch.dtype = torch.float32) -> Case:
    found = cases([op], ["tiny"], tokens, dtype, CPU)
    return next(case for case in found if title in case.title)


# tiny: C 64, F 128, H 4, KH 2, D 32; 8 rows.
BY_HAND = {
    "rms_norm": (512 + 512 + 64, 512 * 4, 0),
    "add_rms_norm": (4 * 512 + 64, 512 * 5, 0),
    "swiglu": (8 * 256 + 8 * 128, 8 * 128 * 5, 0),
    # 6 of 8 heads are read and written; two weights; cos and sin of 16 columns in fp32
    "qk_norm_rope": (2 * 8 * 6 * 32 + 2 * 32, 8 * 6 * 32 * 7, 2 * 8 * 16 * 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("op", BY_HAND)
def test_rows_by_hand(op: str, dtype: torch.dtype) -> None:
    elements, flops, tables = BY_HAND[op]
    case = one(op, dtype=dtype)
    assert (case.bytes, case.flops) == (elements * dtype.itemsize + tables, flops)


def test_attention_by_hand() -> None:
    # 8 rows: q and out 4 heads, k and v 2 heads of 32; 36 pairs of 4 heads, 2·32 operations twice
    causal = one("forest_attention", "1 text of 8")
    assert causal.bytes == (2 * 8 * 4 + 2 * 8 * 2) * 32 * 4
    assert causal.flops == 36 * 4 * 32 * 4
    final = one("final_attention", "1 text of 8")
    assert final.bytes == (2 * 1 * 4 + 2 * 8 * 2) * 32 * 4
    assert final.flops == 8 * 4 * 32 * 4
    # 2 queries: 24 rows once and 12 twice; each own row sees 24 + 1 … 24 + 12
    shared = one("forest_attention", "2 queries of 12 after 24 shared")
    assert shared.bytes == (2 * 48 * 4 + 2 * 48 * 2) * 32 * 4
    assert shared.flops == (300 + 2 * (12 * 24 + 78)) * 4 * 32 * 4
    each = one("final_attention", "2 queries of 12 after 24 each")
    assert each.bytes == (2 * 2 * 4 + 2 * 72 * 2) * 32 * 4
    assert each.flops == 72 * 4 * 32 * 4


def pairs_of(segments: Segments) -> int:
    """Count the pairs of (row, key), row by row up the segments."""
    total = 0
    for s, length in enumerate(segments.length):
        above, child = 0, s
        while segments.parent[child] >= 0:
            above, child = above + segments.fork[child], segments.parent[child]
        total += sum(above + own + 1 for own in range(length))
    return total


@pytest.mark.parametrize("batch", attention_batches(512), ids=lambda batch: batch.title)
def test_counted_work_is_that_of_the_forest(batch: AttentionBatch) -> None:
    assert batch.work.tokens == batch.forest.tokens_computed
    assert batch.work.finals == len(batch.forest.final_rows)
    assert batch.work.pairs == pairs_of(batch.forest.segments)
    if batch.equal is not None:
        texts, tokens = batch.equal
        assert batch.forest.segments.start == list(range(0, texts * tokens, tokens))
        assert batch.forest.final_rows == [(i + 1) * tokens - 1 for i in range(texts)]


def test_workloads_are_the_stated_ones() -> None:
    assert [batch.title for batch in attention_batches(16_384)] == [
        "1 text of 16,384",
        "1 text of 8,192",
        "32 texts of 512",
        "2,000 queries of 12 after 24 each",
        "2,000 queries of 12 after 24 shared",
    ]
    assert [batch.work.tokens for batch in attention_batches(16_384)][2:] == [
        16_384,
        72_000,
        24_024,
    ]


@pytest.mark.parametrize("op", OPS)
def test_inputs_repeat_and_are_like_the_forward(op: str) -> None:
    for case in cases([op], ["tiny"], 8, torch.bfloat16, CPU):
        first, second = case.inputs(), case.inputs()
        for a, b in zip(first.tensors(), second.tensors(), strict=True):
            assert torch.equal(a, b)
            assert a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()
            assert a.stride() == b.stride()
            assert a.double().std() > 0
        if op.endswith("attention"):
            q, k, v = first.tensors()
            assert k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
            assert k.stride(0) == ((4 if op == "forest_attention" else 0) + 2 * 2) * 32
            assert q.is_contiguous() == (op == "final_attention")


def test_models_of_one_shape_share_a_case() -> None:
    def labels(op: str) -> list[str]:
        return [case.models for case in cases([op], ["0.6B", "4B", "8B"], 2, torch.float32, CPU)]

    assert labels("rms_norm") == ["0.6B", "4B", "8B"]
    assert labels("qk_norm_rope") == ["0.6B", "4B, 8B"]
    assert labels("final_attention") == 5 * ["0.6B"] + 5 * ["4B, 8B"]
