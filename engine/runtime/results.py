"""What goes through the loop, and how a batch's tensor becomes each item's own result, or its error."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.errors import InputError
from lastword.model.postprocess import VectorFormat, not_finite, postprocess, quantize
from lastword.report import Report
from lastword.runtime.runner import EmbedTask, Task


@dataclass(frozen=True, slots=True)
class Item:
    """One text on its way: `tag` is the caller's own and comes back with the result.

    `format` is None where the task's rows are wanted as they are; `prompt` holds the ids, among the first of `ids`,
    that were tokenised alone as the call's prompt.
    """

    tag: object
    ids: Sequence[int]
    format: VectorFormat | None = None
    prompt: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Items that are sorted and packed together, their forests, and what was counted while they were prepared."""

    items: list[Item]
    forests: list[Forest]
    began: float  # when they were first looked at
    counts: Report = field(default_factory=Report)


@dataclass(frozen=True, slots=True)
class Finished:
    """Items of one group that are done together: `rows[i]` belongs to `group.items[texts[i]]`, unless it has an error.

    `rows` is a tensor, or a list where the items' formats differ. `errors` is by index into `group.items`.
    """

    group: Group
    texts: Tensor  # int64 [n]
    rows: Tensor | list[Tensor]
    errors: Mapping[int, Exception]
    counts: Report

    def results(self) -> Iterator[tuple[object, Tensor | Exception]]:
        """Yield each item's tag with its tensor or its error."""
        for place, index in enumerate(self.texts.tolist()):
            error = self.errors.get(index)
            yield self.group.items[index].tag, self.rows[place] if error is None else error


def _formats(group: Group, forest: Forest) -> list[VectorFormat]:
    """List the different formats of a batch's items."""
    formats = dict.fromkeys(group.items[i].format for i in forest.texts.tolist())
    return [each for each in formats if each is not None]


def embed_task(group: Group, forest: Forest) -> EmbedTask:
    """Make the task of a batch: its items' vectors, or where they differ in kind the states to make them from."""
    kinds = {(each.dim, each.normalize) for each in _formats(group, forest)}
    if len(kinds) == 1:
        return EmbedTask(*kinds.pop())
    return EmbedTask(max(dim for dim, _ in kinds), normalize=False)


def finished_batch(
    group: Group, forest: Forest, result: Tensor | Exception, task: Task | None, seconds: float
) -> Finished:
    """Bring a batch's result into the form that its items ask for; a vector that is not finite is an error."""
    counts, indices = counts_of(forest), forest.texts.tolist()
    counts.seconds = seconds
    if isinstance(result, Exception):
        errors = {i: _named(result, group.items[i], forest) for i in indices}
        return Finished(group, forest.texts, [], errors, counts)
    states = result[forest.distinct]
    if task is not None:
        return Finished(group, forest.texts, states, {}, counts)
    broken: dict[int, Exception] = {
        indices[place]: _broken(group.items[indices[place]]) for place in not_finite(states)
    }
    formats = _formats(group, forest)
    if len(formats) == 1:
        rows = quantize(states, formats[0].precision, formats[0].ranges)
        return Finished(group, forest.texts, rows, broken, counts)
    done = embed_task(group, forest)
    pairs = zip(states, indices, strict=True)
    vectors = [_formatted(state, group.items[i].format, done) for state, i in pairs]
    return Finished(group, forest.texts, vectors, broken, counts)


def _formatted(state: Tensor, wanted: VectorFormat | None, done: EmbedTask) -> Tensor:
    """Make one vector [dim] of a batch whose items differ, from what its task has `done`."""
    assert wanted is not None
    row = state[None]
    if (wanted.dim, wanted.normalize) != (done.dim, done.normalize):
        row = postprocess(row, wanted.dim, normalize=wanted.normalize)
    return quantize(row, wanted.precision, wanted.ranges)[0]


def counts_of(forest: Forest) -> Report:
    """Count what computing a batch costs."""
    return Report(
        tokens_asked=forest.tokens_asked, tokens_computed=forest.tokens_computed, batches=1
    )


def _named(error: Exception, item: Item, forest: Forest) -> Exception:
    """Turn a lack of memory into the error of the one text that needs it; others are everybody's."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return InputError(
        f"text {item.tag}",
        "does not fit in the device's memory",
        got=f"{forest.tokens_computed} tokens",
        expected="fewer",
        remedy="Lower max_length, compute in bfloat16, or free memory on the device.",
        index=item.tag if isinstance(item.tag, int) else None,
    )


def _broken(item: Item) -> InputError:
    return InputError(
        f"text {item.tag}",
        "its vector is not finite",
        expected="finite numbers",
        remedy="The weights are damaged or overflow in this dtype: check them, or use dtype float32.",
        index=item.tag if isinstance(item.tag, int) else None,
    )
