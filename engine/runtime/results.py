"""The loop's items and groups, and the step from a batch's tensor to each item's result or error."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from queue import Empty
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from lastword.batching.forest import Forest, used_prompt
from lastword.errors import InputError, count
from lastword.kernels.caller_settings import count_up
from lastword.model.postprocess import (
    MIN_LENGTH,
    VectorFormat,
    postprocess,
    rows_without_direction,
    to_precision,
)
from lastword.report import Report
from lastword.runtime.runner import EmbedTask, ScoreTask, StatesTask, Task

# Maximum number of items that one group takes from a queue.
_MOST_ITEMS = 4096
# Parts of the errors for texts without a usable result.
_DAMAGED = "Pass dtype='float32'. If the error persists, the weights are damaged: lastword verify checks them."
_NO_DIRECTION = {
    "what": "its vector is zero or not finite",
    "expected": f"finite numbers and a length of at least {MIN_LENGTH:g}",
    "remedy": _DAMAGED,
}
_NO_SCORE = {
    "what": "its score is not finite",
    "expected": "a finite number",
    "remedy": _DAMAGED,
}
_NOT_IN_FLOAT16 = {
    "what": "its vector is zero or not finite in float16",
    "expected": "numbers that float16 can hold, up to 65504",
    "remedy": "Pass precision='float32', or normalize_embeddings=True.",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One text in the loop.

    Args:
        tag: any object; it is returned with the result, and names the text in errors.
        ids: the text's token ids, with its prompt.
        prompt: the prompt's token ids, if the model may keep the prompt's keys and values, else ().
        format: the requested format of the vector; None only for a refused text.
        cut: whether the text was cut to max_length.
    """

    tag: object
    ids: Sequence[int]
    format: VectorFormat | None = None
    prompt: Sequence[int] = ()
    cut: bool = False

    @property
    def room(self) -> int:
        """Maximum tokens that the item takes of a batch's budget; the prompt's kept tokens take none."""
        kept = used_prompt(self.ids, self.prompt)[1] if self.prompt else 0
        return len(self.ids) - kept

    def problem(self, vocab_size: int) -> InputError | None:
        """Return an error if this item, which comes from a queue, cannot be computed; else None."""
        if self.format is None:
            return self.error("its format is missing", expected="a VectorFormat")
        if not self.ids:
            return self.error("it has no tokens", expected="at least one token")
        every = (*self.ids, *self.prompt)
        low, high = min(every), max(every)
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
    """Items that are sorted and packed into batches together.

    Args:
        items: the items.
        forests: the batches.
        began: when the preparation of the group began, in seconds of `perf_counter`.
        counts: what is known before a batch is computed: number of texts, of texts cut, of texts with unknown words.
        refused: items that could not be included, with their errors.
    """

    items: list[Item]
    forests: list[Forest]
    began: float
    counts: Report = field(default_factory=Report)
    refused: Sequence[tuple[Item, Exception]] = ()


class ItemQueue(Protocol):
    """A source of items for the loop: a `queue.Queue`, or an object that chooses an item when it is asked for one."""

    def get(self, block: bool = ...) -> Item | None:  # noqa: FBT001  as queue.Queue has it
        """Return the next item, or None at the end; with `block` False, raise `queue.Empty` if no item is waiting."""


class QueuedItems:
    """Makes groups of the items from a queue: items that wait at the same moment form a group. None marks the end."""

    def __init__(self, queue: ItemQueue, vocab_size: int) -> None:
        self._queue, self._vocab_size, self._ended = queue, vocab_size, False

    def take(
        self,
        plan: Callable[[list[Item]], list[Forest]],
        wait: bool,  # noqa: FBT001  a Take, once `plan` is given
    ) -> Group | None:
        """Make a group of the items in the queue.

        Args:
            plan: packs items into forests.
            wait: whether to block until there is an item.

        Returns:
            The group, or None if the queue is empty and `wait` is False.

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
class FinishedBatch:
    """The results of a batch: items of one group that finished together.

    Args:
        group: the group.
        texts: [n], int64, the items that finished, as indices into `group.items`.
        rows: `rows[i]` is the result of item `texts[i]`. A tensor, or a list if the items' formats differ; an empty
            list if no item has a result.
        errors: the errors of the items without a result, by index into `group.items`.
        counts: the counts of this batch.
    """

    group: Group
    texts: Tensor
    rows: Tensor | list[Tensor]
    errors: Mapping[int, Exception]
    counts: Report

    def results(self) -> Iterator[tuple[object, Tensor | Exception]]:
        """Yield each item's tag with its tensor or its error."""
        for place, index in enumerate(self.texts.tolist()):
            error = self.errors.get(index)
            yield self.group.items[index].tag, self.rows[place] if error is None else error


# A group's rows (None if no text has one), the items of these rows, the group's counts, and the errors of the texts
# without a row.
GroupResult = tuple[Tensor | None, list[Item], Report, list[InputError]]


class GroupsInOrder:
    """Collects finished batches into groups, and gives the result of each group, in order.

    Args:
        source: returns the next group, as for `Loop.run`. All items of a group have the same format, and an item's tag
            is the index of its text.
        keep_going: whether to collect the errors of texts that cannot be embedded, instead of raising the first one.
    """

    def __init__(self, source: Callable[[bool], Group | None], *, keep_going: bool) -> None:
        self._source, self._keep_going = source, keep_going
        self._groups: deque[_Rows] = deque()

    def take(self, wait: bool) -> Group | None:  # noqa: FBT001  a Take
        """Return the next group from the source; `add` expects the batches of this group from now on."""
        group = self._source(wait)
        if group is not None:
            self._groups.append(_Rows(group))
        return group

    def add(self, batch: FinishedBatch) -> Iterator[GroupResult]:
        """Add a batch of the first unfinished group; yield the results of the groups that are now finished.

        A batch from `list_refused` may come at any time. It is ignored, since `Group.refused` has the same errors.
        """
        if batch.group.forests:  # otherwise it is from `list_refused`
            for place in sorted(batch.errors):
                error = batch.errors[place]
                if not self._keep_going or not isinstance(error, InputError) or error.index is None:
                    raise error
                self._groups[0].errors[place] = error
            self._groups[0].add(batch)
        while self._groups and not self._groups[0].left:
            yield self._groups.popleft().result()


class _Rows:
    """The rows of one group, filled in as its batches finish, and the errors of texts, by index in the group."""

    def __init__(self, group: Group) -> None:
        self.left, self.errors = len(group.items), dict[int, InputError]()
        self._group, self._counts = group, copy(group.counts)
        self._rows: Tensor | None = None

    def add(self, batch: FinishedBatch) -> None:
        if isinstance(batch.rows, Tensor):  # else no text of it has a row
            if self._rows is None:
                self._rows = new_rows(batch.rows, len(self._group.items))
            self._rows[batch.texts] = batch.rows
        self._counts.add(batch.counts)
        self.left -= len(batch.texts)

    def result(self) -> GroupResult:
        good = [place for place in range(len(self._group.items)) if place not in self.errors]
        rows = self._rows if good else None
        if rows is not None and self.errors:
            rows = rows[good]
        refused = (error for _, error in self._group.refused)
        self._counts.texts -= len(self.errors)
        errors = [error for error in refused if isinstance(error, InputError)]
        errors += self.errors.values()
        items = [self._group.items[place] for place in good]
        return rows, items, self._counts, sorted(errors, key=lambda error: error.index or 0)


def list_refused(group: Group) -> FinishedBatch:
    """Make a batch without rows from the items that were refused while their group was prepared."""
    items, errors = [item for item, _ in group.refused], [error for _, error in group.refused]
    places = count_up(0, len(items))
    return FinishedBatch(
        Group(items, [], group.began), places, [], dict(enumerate(errors)), Report()
    )


def new_rows(like: Tensor, count: int) -> Tensor:
    """Return an uninitialised tensor for `count` rows like those of `like`; it is never an inference tensor."""
    with torch.inference_mode(False):
        return like.new_empty(count, *like.shape[1:])


def embed_task(group: Group, forest: Forest) -> EmbedTask:
    """Return the task of a batch: vectors if all items have the same width and normalisation, else the final states."""
    kinds = {(each.dim, each.normalize) for each in _formats(group, forest)}
    if len(kinds) == 1:
        return EmbedTask(*kinds.pop())
    return EmbedTask(None, normalize=False)


def finish_batch(
    group: Group, forest: Forest, result: Tensor | Exception, task: Task | None, seconds: float
) -> FinishedBatch:
    """Convert a batch's tensor to the formats of its items. A vector without a direction becomes an error.

    Args:
        group: the group that the batch belongs to.
        forest: the batch.
        result: the tensor of its task, [N', …] with one row per distinct text, or the error of the whole batch.
        task: as for `Loop.run`.
        seconds: wall time of the batch.
    """
    counts, indices = counts_of(forest), forest.texts.tolist()
    counts.seconds = seconds
    if not isinstance(result, Exception):
        try:
            rows, errors = _rows(group, forest, result[forest.distinct], task)
        except Exception as error:  # noqa: BLE001  it belongs to the items of this batch
            result = error
        else:
            return FinishedBatch(group, forest.texts, rows, errors, counts)
    errors = {i: _item_error(result, group.items[i], forest) for i in indices}
    return FinishedBatch(group, forest.texts, [], errors, counts)


def _rows(
    group: Group, forest: Forest, states: Tensor, task: Task | None
) -> tuple[Tensor | list[Tensor], dict[int, Exception]]:
    """Return a row per text of a batch, and the errors of items whose row is unusable or cannot be converted."""
    indices = forest.texts.tolist()
    if task is not None:
        bad = _bad_states(states, task)
        return states, {indices[at]: group.items[indices[at]].error(**bad[at]) for at in bad}
    done, formats = embed_task(group, forest), _formats(group, forest)
    rows, errors = list[Tensor](states), dict[int, Exception]()
    for wanted in formats:
        places = [at for at, i in enumerate(indices) if group.items[i].format == wanted]
        try:
            made, bad = _to_format(states if len(formats) == 1 else states[places], wanted, done)
        except Exception as error:  # noqa: BLE001  it belongs to the items of this format
            errors |= {indices[at]: error for at in places}
            continue
        for row, parts in bad.items():
            index = indices[places[row]]
            errors[index] = group.items[index].error(**parts)
        if len(formats) == 1:
            return made, errors
        for at, row_made in zip(places, made, strict=True):
            rows[at] = row_made
    return rows, errors


def _formats(group: Group, forest: Forest) -> list[VectorFormat]:
    """List the distinct formats of a batch's items."""
    formats = dict.fromkeys(group.items[i].format for i in forest.texts.tolist())
    return [each for each in formats if each is not None]


def _to_format(
    states: Tensor, wanted: VectorFormat, done: EmbedTask
) -> tuple[Tensor, dict[int, dict[str, str]]]:
    """Convert rows [N, …] from the task `done` to the format `wanted`; also return the error parts of bad rows."""
    if (wanted.dim, wanted.normalize) != (done.dim, done.normalize):
        states = postprocess(states, wanted.dim, normalize=wanted.normalize)
    vectors = to_precision(states, wanted.precision, wanted.ranges)
    bad = dict.fromkeys(rows_without_direction(states), _NO_DIRECTION)
    if wanted.precision == "float16":
        bad = dict.fromkeys(rows_without_direction(vectors), _NOT_IN_FLOAT16) | bad
    return vectors, bad


def _bad_states(states: Tensor, task: Task) -> dict[int, dict[str, str]]:
    """Return the error parts of the rows that are not finite; rows are hidden states [N, layers, C] or scores [N]."""
    if isinstance(task, ScoreTask):
        return {row: _NO_SCORE for row, good in enumerate(states.isfinite().tolist()) if not good}
    if not isinstance(task, StatesTask):
        return {}
    bad = (~states.isfinite().all(2)).tolist()
    return {
        row: {
            "what": "its hidden state is not finite",
            "got": f"a NaN or an infinity in layer {task.layers[layers.index(True)]}",
            "expected": "finite numbers",
            "remedy": _DAMAGED,
        }
        for row, layers in enumerate(bad)
        if True in layers
    }


def counts_of(forest: Forest) -> Report:
    """Return the token counts of one batch."""
    return Report(
        tokens_requested=forest.tokens_requested,
        tokens_computed=forest.tokens_computed,
        tokens_cached=forest.tokens_cached,
        batches=1,
    )


def _item_error(error: Exception, item: Item, forest: Forest) -> Exception:
    """Turn an out-of-memory error into one that names the text; return any other error unchanged."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return item.error(
        "does not fit in the device's memory",
        got=count(forest.tokens_computed, "token"),
        expected="fewer",
        remedy="Lower max_length, pass dtype='bfloat16', or free memory on the device.",
    )
