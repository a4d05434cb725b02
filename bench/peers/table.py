"""Compute the rows of a comparison, for the JSON line, and format them as tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lastword.bench.kernels.table import format_speed
from lastword.bench.models.workloads import Workload
from lastword.bench.peers.libraries import OURS
from lastword.bench.peers.limits import Rates, WorkloadCost, limit
from lastword.bench.peers.rounds import Group
from lastword.weights import ModelConfig

_FEW_LAYERS = 8
# Targets for reranking: how many times as long as lastword another library should take, at least.
TARGETS = {"sentence-transformers": 3.0, "vllm, no prefix cache": 1.5, "vllm": 1.2}
_LIMITED_BY = {"matmul": "matmul", "weights": "reading weights"}

Row = dict[str, Any]


def rows_of(
    group: Group,
    loads: Sequence[Workload],
    amounts: Mapping[str, WorkloadCost],
    config: ModelConfig,
    rates: Rates,
) -> list[Row]:
    """Compute the figures of one precision: a row per workload and library."""
    rows = []
    for load in loads:
        amount = amounts[load.name]
        least_s, limited_by = limit(amount, config, group.precision, rates)
        taken = group.seconds[load.name]
        for label, times in taken.items():
            ratios = [theirs / ours for theirs, ours in zip(times, taken[OURS], strict=True)]
            seconds = statistics.median(times)
            rows.append(
                {
                    "precision": group.precision,
                    "workload": load.name,
                    "title": load.title,
                    "kind": load.kind,
                    "library": label,
                    "texts": len(load.texts),
                    "tokens_requested": amount.tokens_requested,
                    "tokens_needed": amount.tokens,
                    "needed_gflop": sum(amount.call_flops) / 1e9,
                    "seconds": seconds,
                    "round_seconds": times,
                    "speedup": seconds / statistics.median(taken[OURS]),
                    "speedup_range": [min(ratios), max(ratios)],
                    **asdict(group.accuracy[load.name][label]),
                    "limit_seconds": least_s,
                    "limited_by": limited_by,
                    "share_of_limit": least_s / seconds,
                    "cached_tokens": group.cached_tokens.get(load.name, {}).get(label),
                }
            )
    return rows


def table(rows: Sequence[Row], group: Group, rates: Rates, *, layers: int) -> str:
    """Format one precision's rows."""
    matmul = format_speed(rates.flops_per_s[group.precision])
    read = f"{rates.read_bytes_per_s / 1e9:.1f} GB/s"
    pairs = any(row["kind"] == "pair" for row in rows)
    head = f"{'':26}{'seconds':>9}{'lastword':>10}{'(of a round)':>18}"
    head += f"{'log-odds differ by':>20}" if pairs else f"{'cosine':>10}{'least':>10}"
    head += f"{'limit':>9}{'reached':>9}"
    lines = ["", f"{group.precision}: matmul {matmul}, weights read at {read}", head]
    title = None
    for row in rows:
        if row["title"] != title:
            title = row["title"]
            lines.append(
                f"({row['workload']}) {title}: {row['texts']} {'pair' if pairs else 'text'}s, "
                f"{row['tokens_requested']} tokens, "
                f"{row['tokens_needed']} to compute; limit: {_LIMITED_BY[row['limited_by']]}"
            )
        lines.append(_line(row))
    peaks = (f"{label} {peak / 2**20:,.0f} MB" for label, peak in group.peak_bytes.items())
    lines.append(f"peak memory: {', '.join(peaks)}")
    if layers <= _FEW_LAYERS:
        lines.append(
            f"{layers} layers flatter lastword: the last layer, where it saves most, is 1 of {layers} here "
            "and 1 of 28 in the real model"
        )
    return "\n".join(lines)


def _line(row: Row) -> str:
    line = f"  {row['library']:24}{row['seconds']:9.3f}"
    if row["library"] == OURS:
        line += f"{'':28}"
    else:
        low, high = row["speedup_range"]
        line += f"{row['speedup']:9.2f}x{f'({low:.2f} to {high:.2f})':>18}"
    if row["kind"] == "pair":
        line += f"{row['max_abs_difference']:20.1e}"
    else:
        line += f"{row['mean_cosine']:10.5f}{row['min_cosine']:10.5f}"
    line += f"{row['limit_seconds']:9.3f}{row['share_of_limit']:9.0%}"
    return line if row["cached_tokens"] is None else f"{line}  {row['cached_tokens']} tokens cached"


def target_lines(rows: Sequence[Row]) -> list[str]:
    """Return a line for every row of reranking that has a target: the target, and what lastword reached."""
    return [
        f"{row['precision']} {row['library']}: target {target:g}x, "
        f"{'reached' if row['speedup'] >= target else 'missed'} with {row['speedup']:.2f}x"
        for row in rows
        if row["kind"] == "pair" and (target := TARGETS.get(row["library"])) is not None
    ]


def slower_lines(rows: Sequence[Row]) -> list[str]:
    """Return a line for every row in which another library is faster than lastword."""
    return [
        f"slower: {row['title']} in {row['precision']}: lastword takes {1 / row['speedup']:.2f} times "
        f"as long as {row['library']}"
        for row in rows
        if row["speedup"] < 1
    ]
