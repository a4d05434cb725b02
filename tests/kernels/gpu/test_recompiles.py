"""Random batches use a finite, known set of kernel specialisations: nothing compiles after warm-up."""

import random
from collections import Counter

import pytest
import torch
from helpers.project import examples

from lastword.batching.forest import Forest, plan_forests
from lastword.batching.packing import Packer, all_buckets
from lastword.bench.kernels import descriptor
from lastword.bench.kernels.launches import Launch, record_launches
from lastword.kernels import KernelTables, kernel_tables
from lastword.kernels.gpu import final_attention as final_attention_kernel
from lastword.kernels.gpu import forest_attention as forest_attention_kernel
from lastword.kernels.gpu import qk_norm_rope as qk_norm_rope_kernel
from lastword.kernels.gpu import quantize_rows as quantize_rows_kernel
from lastword.kernels.gpu import rms_norm as rms_norm_kernel
from lastword.kernels.gpu import swiglu as swiglu_kernel

CPU = torch.device("cpu")
BATCHES = examples(10_000)
H, KH, D, C, F = 4, 2, 32, 80, 48


def random_batch(draw: random.Random) -> list[list[int]]:
    """Return a few texts of any length, some with a common prompt, some long."""
    texts = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        prompt = [7] * draw.choice((0, 0, 8, 24))
        length = draw.choice((1, 2, 12, 40, 130, 600))
        texts.append(prompt + [draw.randrange(1000) for _ in range(draw.randrange(1, length + 1))])
    return texts


def launch_forest(forest: Forest, dtype: torch.dtype) -> None:
    segments, final_rows = forest.segments, forest.final_rows
    tables = kernel_tables(segments, final_rows, CPU, dtype=dtype, group=H // KH)
    q, k, v = launch_all(tables, forest.tokens_computed, dtype)
    if descriptor.descriptors_fit(q, k, v, tree=tables.has_ancestors):
        by_head = descriptor.descriptor_tables(q, segments, final_rows)
        descriptor.forest_attention_descriptor(q, k, v, by_head, 1.0)


def launch_all(plan: KernelTables, T: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Launch every kernel on tensors with the shapes of the forward pass, without reading values; return q, k and v."""
    N = plan.num_finals
    for rows in {T, N}:
        x, weight = torch.empty(rows, C, dtype=dtype), torch.empty(C, dtype=dtype)
        rms_norm_kernel.rms_norm(x, weight, 1e-6)
        rms_norm_kernel.embed_rms_norm(torch.empty(rows, dtype=torch.int32), x, weight, 1e-6)
        rms_norm_kernel.add_rms_norm(x, torch.empty_like(x), weight, 1e-6)
        swiglu_kernel.swiglu(torch.empty(rows, 2 * F, dtype=dtype))
        fp8 = torch.float8_e4m3fn
        rms_norm_kernel.add_rms_norm_quantize(x, torch.empty_like(x), weight, 1e-6, fp8)
        swiglu_kernel.swiglu_quantize(torch.empty(rows, 2 * F, dtype=dtype), fp8)
        quantize_rows_kernel.quantize_rows(x, fp8)
    weight, table = torch.empty(D, dtype=dtype), torch.empty(T, D // 2)
    qkv = torch.empty(T, (H + 2 * KH) * D, dtype=dtype)
    qk_norm_rope_kernel.qk_norm_rope(
        qkv, weight, weight, table, table, num_heads=H, num_kv_heads=KH, eps=1e-6
    )
    heads = qkv.view(T, -1, D)
    q, k, v = heads[:, :H], heads[:, H:-KH], heads[:, -KH:]
    forest_attention_kernel.forest_attention(q, k, v, plan, 1.0)
    final_attention_kernel.final_attention(torch.empty(N, H, D, dtype=dtype), k, v, plan, 1.0)
    return q, k, v


def test_specialisations_are_finite(one_thread: None) -> None:
    draw = random.Random(0)
    seen: dict[Launch, int] = {}
    with record_launches("sm_90") as launches:
        for batch in range(BATCHES):
            for forest in plan_forests(random_batch(draw), 1024):
                launch_forest(forest, torch.bfloat16)
            for launch in launches:
                seen.setdefault(launch, batch)
            launches.clear()
    counts: dict[str, int] = {}
    for launch in seen:
        counts[launch.name] = counts.get(launch.name, 0) + 1
    # rms_norm plain, with lookup, with the residual; attention plain, tree, short, short tree; with and without splits.
    assert counts == {
        "rms_norm": 3, "swiglu": 1, "qk_norm_rope": 1, "forest_attention": 4, "forest_attention_descriptor": 1,
        "final_attention": 2, "join": 1,
        "add_rms_norm_quantize": 1, "swiglu_quantize": 1, "quantize_rows": 1,
    }  # fmt: skip
    assert max(seen.values()) < BATCHES // 4, "a specialisation turned up late"


def test_buckets_ask_for_no_specialisation_of_their_own(one_thread: None) -> None:
    """Buckets differ only in sizes on which no kernel is specialised; warming them up compiles every form."""
    packer, dtype = Packer(CPU, torch.bfloat16, H // KH, 1), torch.bfloat16
    with record_launches("sm_90") as launches:
        for bucket in all_buckets(2048):
            layout = packer.bucket_layout(bucket)
            buffer = torch.zeros(layout.size, dtype=torch.int32)
            launch_all(layout.read(buffer).plan, bucket.rows, dtype)
    counts = Counter(launch.name for launch in set(launches))
    # attention plain, tree, short, short tree; with and without splits.
    assert counts == {
        "rms_norm": 3, "swiglu": 1, "qk_norm_rope": 1, "forest_attention": 4, "final_attention": 2, "join": 1,
        "add_rms_norm_quantize": 1, "swiglu_quantize": 1, "quantize_rows": 1,
    }  # fmt: skip


def test_a_specialised_count_is_refused() -> None:
    kernel = final_attention_kernel._join_kernel
    part = torch.empty(16)
    free = kernel.params[4].do_not_specialize
    assert free
    kernel.params[4].__dict__["do_not_specialize"] = False
    try:
        with (
            record_launches("sm_90"),
            pytest.raises(TypeError, match="splits would be specialised"),
        ):
            kernel[(1,)](part, part, part, part, 3, 5, D=4, BLOCK_D=16)
    finally:
        kernel.params[4].__dict__["do_not_specialize"] = free
