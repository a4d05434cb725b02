"""Make the cases to time: each operation's inputs at a model's real shapes, and the bytes and FLOPs that it needs.

Bytes: every input is read once, and every output is written once. FLOPs: one for each addition, multiplication,
division, root and exponential of the formula. Inputs are random, and the same in every call.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lastword.batching.forest import Forest, plan_forests
from lastword.bench.models.flops import Work, work
from lastword.bench.shapes import SIZES, VOCABULARY, Sizes
from lastword.kernels import CpuPlan, KernelTables, Segments, kernel_tables, launches_triton

EPS = 1e-6
# The queries of a batch: each has an instruction of PREFIX tokens before its own QUERY tokens.
PREFIX, QUERY = 24, 12
_QUERIES_PER_TOKEN = 2000 / 16_384


@dataclass(frozen=True, slots=True)
class CaseTables(KernelTables):
    """The kernels' attention tables, with the segments and last-token rows from which the tables were made."""

    segments: Segments
    final_rows: list[int]


@dataclass(frozen=True, slots=True)
class CaseInputs:
    """Arguments of one call of an operation."""

    args: tuple[Any, ...]
    options: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the arguments; a call may change some of them."""
        return [value for value in self.args if isinstance(value, Tensor)]

    def double(self) -> "CaseInputs":
        """Return the same arguments in fp64."""
        wide = (value.double() if isinstance(value, Tensor) else value for value in self.args)
        return replace(self, args=tuple(wide))

    def dense(self) -> "CaseInputs":
        """Return the same arguments; if one of them is an attention plan, it becomes a `CpuPlan`."""
        args = (
            CpuPlan.of(value.segments, value.final_rows, self.tensors()[0].device)
            if isinstance(value, CaseTables)
            else value
            for value in self.args
        )
        return replace(self, args=tuple(args))


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """A batch for attention.

    `equal` is (number of texts, tokens per text) if all texts have the same length and share no rows, else None.
    """

    title: str
    forest: Forest
    work: Work
    equal: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one shape; `inputs()` makes new arguments, with the same values in every call."""

    op: str
    models: str
    title: str
    bytes: int
    flops: int
    inputs: Callable[[], CaseInputs]
    batch: AttentionBatch | None = None


def cases(
    ops: Sequence[str],
    models: Sequence[str],
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[Case]:
    """Yield every operation at the shapes of every model; models of equal shape share a case.

    Args:
        ops: names of operations.
        models: names of `SIZES`.
        tokens: number of rows of a batch.
        dtype: dtype of the inputs.
        device: device of the inputs.
    """
    attends = any(op.endswith("attention") for op in ops)
    packs = attention_batches(tokens) if attends else []
    for op in ops:
        by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for model in models:
            by_shape[_shape(op, SIZES[model])].append(model)
        for names in by_shape.values():
            sizes, label = SIZES[names[0]], ", ".join(names)
            if op.endswith("attention"):
                yield from (_attention(op, label, sizes, batch, dtype, device) for batch in packs)
            else:
                yield _rows(op, label, sizes, tokens, dtype, device)


def _shape(op: str, sizes: Sizes) -> tuple[int, ...]:
    """Return the sizes that an operation depends on."""
    if op in ("rms_norm", "add_rms_norm"):
        return (sizes.hidden_size,)
    if op == "swiglu":
        return (sizes.intermediate_size,)
    return (sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim)


def attention_batches(tokens: int) -> list[AttentionBatch]:
    """Make the batches for attention.

    The batches are: one text of `tokens` tokens; one text half as long; many texts of 512 tokens; many queries after an
    equal prefix, once with a copy of the prefix for each query; and the same queries with the prefix shared. At 16,384
    tokens these are 1 text of 16k, 1 of 8k, 32 of 512, and twice 2,000 queries of 12 tokens after a prefix of 24.
    """
    rng = random.Random(20_261_123)  # noqa: S311 - texts, not secrets

    def text(length: int) -> list[int]:
        return rng.choices(range(VOCABULARY), k=length)

    def equal(count: int, length: int) -> AttentionBatch:
        name = "text" if count == 1 else "texts"
        return _batch(f"{count:,} {name} of {length:,}", [text(length) for _ in range(count)])

    each = min(512, max(2, tokens // 4))
    count, prefix = max(2, round(tokens * _QUERIES_PER_TOKEN)), text(PREFIX)
    firsts = rng.sample(range(VOCABULARY), count)  # no two queries share more than the prefix
    queries = [[*prefix, first, *text(QUERY - 1)] for first in firsts]
    title = f"{count:,} queries of {QUERY} after {PREFIX}"
    return [
        equal(1, tokens),
        *([equal(1, tokens // 2)] if tokens > 1 else []),
        equal(max(2, tokens // each), each),
        _batch(f"{title} each", queries),
        _batch(f"{title} shared", queries, share=True),
    ]


def _batch(title: str, texts: list[list[int]], *, share: bool = False) -> AttentionBatch:
    lengths = [len(text) for text in texts]
    (forest,) = plan_forests(texts, sum(lengths), share=share)
    if share:
        return AttentionBatch(title, forest, work(texts), None)
    total = sum(lengths)
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    counted = Work(total, total, len(texts), pairs, final_pairs=total)
    return AttentionBatch(title, forest, counted, (len(texts), lengths[0]))


def _rows(
    op: str, label: str, sizes: Sizes, T: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """Make the case of a row-wise operation, which is limited by bandwidth."""
    C, F, _, H, KH, D = sizes
    size, heads, norm, rope = dtype.itemsize, H + KH, 4, 3  # norm and rope: operations per element

    def draw() -> CaseInputs:
        source = _Source(device, dtype)
        if op == "rms_norm":
            return CaseInputs((source.scaled(T, C), source.weight(C), EPS), {})
        if op == "add_rms_norm":
            args = (source.scaled(T, C), source.scaled(T, C), source.weight(C), EPS)
            return CaseInputs(args, {})
        if op == "swiglu":
            return CaseInputs((source.normal(T, 2 * F).mul_(2),), {})
        angles = source.normal(T, D // 2).float().mul_(100)
        qkv = source.scaled(T, (H + 2 * KH) * D)
        tables = (source.weight(D), source.weight(D), angles.cos(), angles.sin())
        return CaseInputs((qkv, *tables), {"num_heads": H, "num_kv_heads": KH, "eps": EPS})

    counts = {
        "rms_norm": ((2 * T * C + C) * size, norm * T * C),
        "add_rms_norm": ((4 * T * C + C) * size, (norm + 1) * T * C),
        "swiglu": (3 * T * F * size, 5 * T * F),
        "qk_norm_rope": (
            (2 * T * heads * D + 2 * D) * size + T * D * 4,  # cos and sin: [T, D/2] fp32 each
            (norm + rope) * T * heads * D,
        ),
    }
    num_bytes, flops = counts[op]
    return Case(op, label, f"{T:,} tokens", num_bytes, flops, draw)


def _attention(
    op: str,
    label: str,
    sizes: Sizes,
    batch: AttentionBatch,
    dtype: torch.dtype,
    device: torch.device,
) -> Case:
    """Make the case of attention, on views of fused projections, as in the forward."""
    H, KH, D = sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim
    final = op == "final_attention"
    T, N = batch.work.tokens, batch.work.finals
    plan = _plan(batch.forest, device, dtype, H // KH)

    def draw() -> CaseInputs:
        source = _Source(device, dtype)
        q = source.normal(N, H, D) if final else None
        fused = source.normal(T, (0 if final else H) + 2 * KH, D)
        q = fused[:, :H] if q is None else q
        return CaseInputs((q, fused[:, -2 * KH : -KH], fused[:, -KH:], plan, D**-0.5), {})

    queries, pairs = (N, batch.work.final_pairs) if final else (T, batch.work.pairs)
    num_bytes = (2 * queries * H + 2 * T * KH) * D * dtype.itemsize
    return Case(op, label, batch.title, num_bytes, 4 * D * H * pairs, draw, batch)


def _plan(
    forest: Forest, device: torch.device, dtype: torch.dtype, group: int
) -> CpuPlan | CaseTables:
    """Return the plan that lastword's operations read on this device."""
    segments, final_rows = forest.segments, forest.final_rows
    if not launches_triton(device):
        return CpuPlan.of(segments, final_rows, device)
    tables = kernel_tables(segments, final_rows, device, dtype=dtype, group=group)
    parts = {field.name: getattr(tables, field.name) for field in fields(tables)}
    return CaseTables(**parts, segments=segments, final_rows=final_rows)


class _Source:
    """Random tensors on the device, from a seed."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(20_261_123)

    def normal(self, *shape: int) -> Tensor:
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        return noise.to(self.dtype)

    def weight(self, size: int) -> Tensor:
        """Make a norm's weight, with values around 1."""
        return self.normal(size).mul_(0.1).add_(1)

    def scaled(self, rows: int, columns: int) -> Tensor:
        """Make rows with magnitudes from 0.001 to 10; in small rows eps matters."""
        sizes = torch.rand(rows, 1, generator=self.generator, device=self.device)
        return self.normal(rows, columns).mul_((10 ** (4 * sizes - 3)).to(self.dtype))
