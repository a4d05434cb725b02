"""Estimate what a job will take, for --dry-run: tokens and speed of a sample, and from these time, size and price."""

import re
from collections.abc import Iterator
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING

from lastword.bulk.plan import Plan
from lastword.cli import write
from lastword.errors import count

if TYPE_CHECKING:
    from lastword.cli.commands.embed import Work
    from lastword.embedder import Embedder

_UNITS = 8  # units that the sample is taken from
_TEXTS = 1000  # texts of the sample
_GROUP = 16  # texts embedded at once
_SECONDS = 10.0  # for embedding; a group that has begun is finished
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "most": 1.0}


def estimate(
    plan: Plan, embedder: "Embedder", work: "Work", *, world: int, price: float | None
) -> Iterator[str]:
    """Yield lines about a job: its records, the tokens of a sample, the time, the size of the vectors, the price.

    Args:
        plan: the job.
        embedder: the model.
        work: reads the records.
        world: the number of machines.
        price: the price of a machine per hour; None for no line about it.
    """
    records = sum(unit.records for unit in plan.units)
    size = sum(unit.num_bytes for unit in plan.units)
    yield f"{count(records, 'record')} in {count(len(plan.units), 'unit')}, {size:,} bytes"
    texts = _sample(plan, work)
    if not texts:
        return
    lengths = sorted(map(len, embedder.token_ids(texts, prompt=work.prompt)))
    found = (f"{name} {lengths[int(at * (len(lengths) - 1))]:,}" for name, at in _MARKS.items())
    yield f"tokens per text, of a sample of {len(lengths):,}: {', '.join(found)}"
    mean = sum(lengths) / len(lengths)
    layout = write.ELEMENT_TYPES[work.metadata["precision"]]
    per_vector = embedder.dim // layout.packed * int(layout.numpy[-1])
    yield f"about {mean * records:,.0f} tokens; vectors of {records * per_vector:,} bytes, and the records' fields"
    tokens, seconds = _speed(texts, embedder, work)
    each = mean * records / (tokens / seconds) / world
    machines = f"{count(world, 'machine')} such as this" if world > 1 else "this machine"
    yield f"about {_duration(each)} on {machines}, at {tokens / seconds:,.0f} tokens/s as measured just now"
    if price is not None:
        hours = each * world / 3600
        yield f"about {hours * price:,.2f} in all, {hours * price / records * 1e6:,.2f} per million texts"


def _sample(plan: Plan, work: "Work") -> list[str]:
    """Return the first texts of some units, spread over the job."""
    units = plan.units[:: max(1, -(-len(plan.units) // _UNITS))]
    texts: list[str] = []
    for unit in units:
        records = work.records(plan.sources(unit), None)
        texts += [record.text for record in islice(records, _TEXTS // len(units))]
    return [
        text for text in texts if not _SURROGATE.search(text)
    ]  # such a text is an error of its own


def _speed(texts: list[str], embedder: "Embedder", work: "Work") -> tuple[int, float]:
    """Embed a part of the sample; return its tokens, and the seconds taken."""
    embedder.encode(
        texts[:1], prompt=work.prompt, show_progress_bar=False
    )  # the first call is slow
    tokens, began = 0, perf_counter()
    for at in range(0, len(texts), _GROUP):
        group = texts[at : at + _GROUP]
        tokens += sum(map(len, embedder.token_ids(group, prompt=work.prompt)))
        embedder.encode(group, prompt=work.prompt, show_progress_bar=False)
        if perf_counter() - began > _SECONDS:
            break
    return tokens, perf_counter() - began


def _duration(seconds: float) -> str:
    """Return a duration in words, to two figures or so."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}s"
    return f"{seconds:,.1f} seconds"
