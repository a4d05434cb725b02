"""Compute and simulate a job of a billion texts on many GPUs, from measured numbers and stated assumptions.

Units go to whichever GPU is free, as with locks or Ray, or in fixed shares, as with --rank and --world. Some GPUs are
slow, and nodes fail: the unit that a GPU of a failed node works on is begun again, and the node comes back later.
"""

import heapq
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

_TEXTS, _TOKENS, _BYTES = 1_000_000_000, 300, 1_200  # texts in all, tokens and bytes per text
_UNIT = 50_000  # texts
_PARAMETERS = 3.6e9  # of Qwen3-Embedding-4B without the table of embeddings
_FLOPS, _SHARE = (
    989e12,
    0.5,
)  # dense bf16 of an H200, and the assumed share of it that a forward reaches
_WIDTH, _ELEMENT = 2560, 2  # float16 vectors
_PER_NODE = 8  # GPUs
_SLOW, _SLOWNESS = 0.01, 2.0  # share of slow GPUs, and how many times as long they take
_SPREAD = 0.03  # spread of a unit's time, as a share of it
_FAILURE_HOURS, _REPAIR_HOURS = (
    1000.0,
    0.5,
)  # hours between two failures of a node, and until it is back
_RUNS = 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated job took: hours in all, hours after 95 % of the units were done, and units begun again."""

    hours: float
    tail: float
    repeated: int


def fleet() -> Iterator[dict[str, Any]]:
    """Yield the assumptions, then the results of simulating 8 and 512 GPUs."""
    flops = 2 * _PARAMETERS * _TOKENS  # per text; attention adds some 3 % at 300 tokens
    rate = _FLOPS * _SHARE / flops  # texts per second and GPU
    tokenized = _tokens_per_core()
    out = _WIDTH * _ELEMENT
    lines = [
        f"assumed: {_TEXTS:,} texts of {_TOKENS} tokens and {_BYTES:,} bytes",
        f"assumed: a 4B model in bf16 at {_SHARE:.0%} of {_FLOPS / 1e12:,.0f} TFLOPS",
        f"assumed: {_SLOW:.0%} of the GPUs take {_SLOWNESS:g} times as long",
        f"assumed: a node of {_PER_NODE} fails every {_FAILURE_HOURS:,.0f} hours, for {_REPAIR_HOURS:g}",
        f"measured: one core of this machine tokenises {tokenized:,.0f} tokens/s",
        f"so a GPU embeds {rate:,.0f} texts/s, which are {rate * _TOKENS:,.0f} tokens/s;",
        f"it reads {rate * _BYTES / 1e6:.2f} MB/s and writes {rate * out / 1e6:.2f} MB/s;",
        f"it keeps {rate * _TOKENS / tokenized:.2f} such cores tokenising",
        f"in all {_TEXTS * _BYTES / 1e12:.1f} TB in, {_TEXTS * out / 1e12:.1f} TB out, {_TEXTS / _UNIT:,.0f} units",
    ]
    for line in lines:
        yield {"scenario": "fleet", "line": line}
    for gpus in (8, 512):
        for shared in (True, False):
            yield _case(gpus, rate, out, shared=shared)


def _case(gpus: int, rate: float, out: int, *, shared: bool) -> dict[str, Any]:
    """Simulate one number of GPUs several times."""
    unit_hours = _UNIT / rate / 3600
    found = [
        simulate(gpus, round(_TEXTS / _UNIT), unit_hours, shared=shared, seed=seed)
        for seed in range(_RUNS)
    ]
    hours = statistics.median(each.hours for each in found)
    tail = statistics.median(each.tail for each in found)
    ideal = _TEXTS / rate / gpus / 3600
    way = "free GPUs take units" if shared else "fixed shares"
    return {
        "scenario": "fleet", "gpus": gpus, "shared": shared, "hours": hours, "ideal_hours": ideal, "tail_hours": tail,
        "longest_hours": max(each.hours for each in found),
        "line": f"{gpus:>4} GPUs, {way:<20} {hours:8.2f} h (no trouble: {ideal:.2f}; longest of {_RUNS}: "
        f"{max(each.hours for each in found):.2f}), the last 5 % of units took {tail:.2f} h, "
        f"{statistics.mean(each.repeated for each in found):.1f} units begun again; "
        f"{gpus * rate * _BYTES / 1e9:.2f} GB/s in, {gpus * rate * out / 1e9:.2f} GB/s out",
    }  # fmt: skip


def simulate(gpus: int, units: int, unit_hours: float, *, shared: bool, seed: int) -> Outcome:
    """Simulate one job.

    Args:
        gpus: the number of GPUs.
        units: the number of units.
        unit_hours: the hours of a unit on a GPU that is not slow.
        shared: whether all GPUs take units from one queue, each as it becomes free; otherwise every GPU has a fixed
            share.
        seed: the seed of the random numbers.
    """
    draw = random.Random(seed)  # noqa: S311  no secrets
    slowness = [_SLOWNESS if draw.random() < _SLOW else 1.0 for _ in range(gpus)]
    nodes = -(-gpus // _PER_NODE)
    fails = [draw.expovariate(1 / _FAILURE_HOURS) for _ in range(nodes)]
    failed: list[list[float]] = [[] for _ in range(nodes)]  # the times of the failures so far
    left = units
    shares = [len(range(gpu, units, gpus)) for gpu in range(gpus)]
    ends: list[float] = []
    repeated = 0
    free = [(0.0, gpu) for gpu in range(gpus)]
    while free:
        now, gpu = heapq.heappop(free)
        if not (left if shared else shares[gpu]):
            continue
        took = unit_hours * slowness[gpu] * draw.lognormvariate(0.0, _SPREAD)
        node = gpu // _PER_NODE
        while fails[node] < now:  # it failed while this GPU was idle or being repaired
            failed[node].append(fails[node])
            fails[node] += _REPAIR_HOURS + draw.expovariate(1 / _FAILURE_HOURS)
        hit = next((at for at in [*failed[node], fails[node]] if now <= at < now + took), None)
        if hit is not None:
            repeated += 1
            heapq.heappush(free, (hit + _REPAIR_HOURS, gpu))
            continue
        left -= 1
        shares[gpu] -= 1
        ends.append(now + took)
        heapq.heappush(free, (now + took, gpu))
    ends.sort()
    return Outcome(ends[-1], ends[-1] - ends[int(0.95 * len(ends)) - 1], repeated)


def _tokens_per_core() -> float:
    """Measure how many tokens per second one core tokenises, with the built-in model's tokenizer."""
    from lastword import Embedder

    embedder = Embedder(show_progress_bar=False)
    texts = [
        f"text {number} " + "about corpora and their many words " * 40 for number in range(500)
    ]
    embedder.token_ids(texts[:10])
    began = perf_counter()
    tokens = sum(map(len, embedder.token_ids(texts)))
    return tokens / (perf_counter() - began)
