"""Estimate a job, for --dry-run: measure tokens and speed of a sample, and from these derive time, size and price."""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from lastword.bulk.plan import Plan
from lastword.cli import write
from lastword.cli.failures import Failures
from lastword.errors import count

if TYPE_CHECKING:
    from lastword.cli.commands.embed import Work
    from lastword.embedder import Embedder

_UNITS = 8  # units that the sample is taken from
_TEXTS = 1000  # texts of the sample
_GROUP = 16  # texts embedded at once
_SECONDS = 10.0  # for embedding; a group that has begun is finished

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
    texts, tried = _sample(plan, work)
    # What the tokenizer refuses is left out of the job, too.
    tokenizer, most = embedder.info.tokenizer, embedder.max_length
    good = tokenizer.encode_good(texts, most, prompt=work.prompt, keep_going=True)
    if not good.ids:
        return
    texts = [texts[index] for index in good.ids]
    ordered = list(map(len, good.ids.values()))
    lengths = sorted(ordered)
    found = (f"{name} {lengths[int(at * (len(lengths) - 1))]:,}" for name, at in _MARKS.items())
    yield f"tokens per text, of a sample of {len(lengths):,}: {', '.join(found)}"
    mean = sum(lengths) / len(lengths)
    vectors = round(records * len(texts) / tried)
    layout = write.ELEMENT_TYPES[work.metadata["precision"]]
    per_vector = embedder.dim // layout.packed * int(layout.numpy[-1])
    if vectors != records:
        yield f"about {count(vectors, 'text')}, as {count(tried, 'record')} of the sample gave {len(texts):,}"
    yield f"about {mean * vectors:,.0f} tokens; vectors of {vectors * per_vector:,} bytes, and the records' fields"
    tokens, seconds = _speed(texts, ordered, embedder, work)
    each = mean * vectors / (tokens / seconds) / world
    machines = f"{count(world, 'machine')} such as this" if world > 1 else "this machine"
    yield f"about {_duration(each)} on {machines}, at {tokens / seconds:,.0f} tokens/s as measured just now"
    if price is not None:
        hours = each * world / 3600
        yield f"about {hours * price:,.2f} in all, {hours * price / max(1, vectors) * 1e6:,.2f} per million texts"


def _sample(plan: Plan, work: "Work") -> tuple[list[str], int]:
    """Return all texts of the first records of some units, spread over the job, and the number of these records.

    Records without a text count too: those that --where skips, blank ones and bad ones.
    """
    units = plan.units[:: max(1, -(-len(plan.units) // _UNITS))]
    texts: list[str] = []
    tried = 0
    for number, unit in enumerate(units, 1):
        failures = Failures(skip=True)
        work.begin(failures)
        with_text = upto = 0  # records with a text; records up to the last of them
        last: tuple[str, int | None] | None = None
        for record in work.records(plan.sources(unit), None):
            place = record.path, record.line
            if place != last:
                if len(texts) >= _TEXTS * number // len(units):
                    tried += upto
                    break
                with_text, last = with_text + 1, place
                left_out = work.fields.skipped + work.blanks.left_out + failures.count
                upto = with_text + left_out
            texts.append(record.text)
        else:
            tried += unit.records
    return texts, tried


def _speed(
    texts: list[str], lengths: Sequence[int], embedder: "Embedder", work: "Work"
) -> tuple[int, float]:
    """Embed a part of the sample; return the part's number of tokens, and the seconds taken.

    Args:
        texts: the sample.
        lengths: the number of tokens of each text.
        embedder: the model.
        work: has the prompt.
    """
    embedder.encode(
        texts[:1], prompt=work.prompt, show_progress_bar=False
    )  # the first call is slow
    tokens, began = 0, perf_counter()
    for at in range(0, len(texts), _GROUP):
        group = texts[at : at + _GROUP]
        tokens += sum(lengths[at : at + _GROUP])
        embedder.encode(group, prompt=work.prompt, show_progress_bar=False)
        if perf_counter() - began > _SECONDS:
            break
    return tokens, perf_counter() - began


def _duration(seconds: float) -> str:
    """Return a duration in words, with one decimal."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}s"
    return f"{seconds:,.1f} seconds"
