"""What goes through the loop, and how a batch's tensor becomes each item's own result, or its error."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from time import perf_counter

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.errors import InputError
from lastword.model.postprocess import VectorFormat, not_finite, postprocess, quantize
from lastword.report import Report
from lastword.runtime.runner import EmbedTask, Task

# Items that one group takes from a queue at most.
_MOST_ITEMS = 4096


@dataclass(frozen=True, slots=True)
class Item:
    """One text on its way: `tag` is the caller's own and comes back with the result.

    `format` says what vector is wanted; it is None where the loop is given a task for all items. `prompt` holds the ids
    of the call's prompt, tokenised alone; nothing depends on it yet.
    """

    tag: object
    ids: Sequence[int]
    format: VectorFormat | None = None
    prompt: Sequence[int] = ()

    def problem(self, vocab_size: int) -> InputError | None:
        """Say why an item that a server hands over cannot be computed beside others."""
        if self.format is None:
            return self.error("its format is missing", expected="a VectorFormat")
        if not self.ids:
            return self.error("it has no tokens", expected="one token at least")
        low, high = min(self.ids), max(self.ids)
        if low < 0 or high >= vocab_size:
            got = f"id {low if low < 0 else high}"
            return self.error("unknown token", got=got, expected=f"0 to {vocab_size - 1}")
        return None

    def error(self, what: str, **parts: str) -> InputError:
        """Make an error that names this item."""
        index = self.tag if isinstance(self.tag, int) else None
        return InputError(f"text {self.tag}", what, index=index, **parts)


@dataclass(frozen=True, slots=True)
class Group:
    """Items that are sorted and packed together, their forests, and what was counted while they were prepared.

    `refused`: items that are not in it, with their errors.
    """

    items: list[Item]
    forests: list[Forest]
    began: float  # when they were first looked at
    counts: Report = field(default_factory=Report)
    refused: Sequence[tuple[Item, Exception]] = ()


class QueuedItems:
    """Groups of the items that come through a queue; what lies there at once is a group. None ends it."""

    def __init__(self, queue: "Queue[Item | None]", vocab_size: int) -> None:
        self._queue, self._vocab_size, self._ended = queue, vocab_size, False

    def take(self, plan: Callable[[list[Item]], list[Forest]], *, wait: bool) -> Group | None:
        """Make a group of what lies in the queue, or None where nothing does and `wait` is not set.

        Raises:
            StopIteration: the queue has ended.
        """
        taken: list[Item] = []
        with suppress(Empty):
            while not self._ended and len(taken) < _MOST_ITEMS:
                item = self._queue.get(block=wait and not taken)
                self._ended = item is None
                if item is not None:
                    taken.append(item)
        if not taken:
            if self._ended:
                raise StopIteration
            return None
        problems = [(item, item.problem(self._vocab_size)) for item in taken]
        items = [item for item, problem in problems if problem is None]
        refused = [(item, problem) for item, problem in problems if problem is not None]
        return Group(items, plan(items), perf_counter(), Report(texts=len(taken)), refused)


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


def refused_items(group: Group) -> Finished:
    """Answer the items that were refused while their group was prepared."""
    items, errors = [item for item, _ in group.refused], [error for _, error in group.refused]
    places = torch.arange(len(items))
    return Finished(Group(items, [], group.began), places, [], dict(enumerate(errors)), Report())


def embed_task(group: Group, forest: Forest) -> EmbedTask:
    """Make the task of a batch: its items' vectors, or where they differ in kind the states to make them from."""
    kinds = {(each.dim, each.normalize) for each in _formats(group, forest)}
    if len(kinds) == 1:
        return EmbedTask(*kinds.pop())
    return EmbedTask(None, normalize=False)


def finished_batch(
    group: Group, forest: Forest, result: Tensor | Exception, task: Task | None, seconds: float
) -> Finished:
    """Bring a batch's result into the form that its items ask for; a vector that is not finite is an error."""
    counts, indices = counts_of(forest), forest.texts.tolist()
    counts.seconds = seconds
    if not isinstance(result, Exception):
        try:
            rows, errors = _rows(group, forest, result[forest.distinct], task)
        except Exception as error:  # noqa: BLE001  it belongs to the items of this batch
            result = error
        else:
            return Finished(group, forest.texts, rows, errors, counts)
    errors = {i: _named(result, group.items[i], forest) for i in indices}
    return Finished(group, forest.texts, [], errors, counts)


def _rows(
    group: Group, forest: Forest, states: Tensor, task: Task | None
) -> tuple[Tensor | list[Tensor], dict[int, Exception]]:
    """Give a row per text of a batch, and the error of each that is not finite, from what its task gave."""
    if task is not None:
        return states, {}
    indices = forest.texts.tolist()
    errors: dict[int, Exception] = {}
    for place in not_finite(states):
        errors[indices[place]] = group.items[indices[place]].error(
            "its vector is not finite",
            expected="finite numbers",
            remedy="The weights are damaged or overflow in this dtype: check them, or use dtype float32.",
        )
    formats = _formats(group, forest)
    if len(formats) == 1:
        return quantize(states, formats[0].precision, formats[0].ranges), errors
    done, rows = embed_task(group, forest), list(states)
    for place, index in enumerate(indices):
        try:
            rows[place] = _formatted(rows[place], group.items[index].format, done)
        except Exception as error:  # noqa: BLE001  of this item alone
            errors[index] = error
    return rows, errors


def _formats(group: Group, forest: Forest) -> list[VectorFormat]:
    """List the different formats of a batch's items."""
    formats = dict.fromkeys(group.items[i].format for i in forest.texts.tolist())
    return [each for each in formats if each is not None]


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
    return item.error(
        "does not fit in the device's memory",
        got=f"{forest.tokens_computed} tokens",
        expected="fewer",
        remedy="Lower max_length, compute in bfloat16, or free memory on the device.",
    )
