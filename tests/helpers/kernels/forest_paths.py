"""Make forests and both kinds of attention plans, and find the rows that a packed row attends to in a simple way."""

import torch

from lastword.batching.forest import Forest, plan_forests
from lastword.kernels import CpuPlan, KernelTables, Segments, kernel_tables

CPU = torch.device("cpu")


def one_forest(texts: list[list[int]]) -> Forest:
    """Return the forest of all texts in one batch."""
    (forest,) = plan_forests(texts, 10**9)
    return forest


def cpu_plan(forest: Forest, device: torch.device = CPU) -> CpuPlan:
    return CpuPlan.of(forest.segments, forest.final_rows, device)


def tables_of(
    plan: CpuPlan, q: torch.Tensor, k: torch.Tensor, segments: Segments | None = None
) -> KernelTables:
    """Build the kernels' tables for q [rows, H, D] and k [T, KH, D] from a plan; `segments` replaces the plan's."""
    return kernel_tables(
        segments or plan.segments, plan.final_rows, q.device, dtype=q.dtype, group=q.shape[1] // k.shape[1]
    )  # fmt: skip


def path_rows(forest: Forest, row: int) -> list[int]:
    """Return the rows that `row` attends to, with itself last, by walking up from its segment to the root."""
    segments = forest.segments
    (owner,) = [
        s
        for s, (start, length) in enumerate(zip(segments.start, segments.length, strict=True))
        if start <= row < start + length
    ]
    rows = list(range(segments.start[owner], row + 1))
    while segments.parent[owner] >= 0:
        start, fork = segments.start[segments.parent[owner]], segments.fork[owner]
        rows = list(range(start, start + fork)) + rows
        owner = segments.parent[owner]
    return rows
