"""The one loop: texts → token ids → forests → a tensor per batch → results in the caller's order.

    texts ─ groups ─► Group of items ─ plan_forests ─► forests ─ runner.start(task) ─► FinishedBatch ─► matrices

`run` is the core: it takes groups of items, from texts or from a queue, and yields the results of each batch when the
batch finishes. The other methods are thin wrappers: `matrices` restores the order, adds up counts and raises errors;
`results` yields one item's result at a time; `plan` only counts.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from time import perf_counter

from torch import Tensor

from lastword.batching.forest import Forest, plan_forests
from lastword.encode_options import EncodeOptions
from lastword.report import Report
from lastword.runtime.out_of_memory import BatchBudget, compute_parts
from lastword.runtime.results import (
    FinishedBatch,
    Group,
    GroupResult,
    GroupsInOrder,
    Item,
    ItemQueue,
    QueuedItems,
    counts_of,
    embed_task,
    finish_batch,
    list_refused,
    new_rows,
)
from lastword.runtime.runner import Runner, Task, Wait, check_process, raise_on_wait, wait_for_first
from lastword.runtime.threads import Take, is_abandoned, map_ahead, run_ahead
from lastword.text.groups import GROUP_TEXTS, split_into_groups
from lastword.text.tokenizer import GoodTokens, TextTokenizer

# A group of fewer texts is prepared in the caller's thread: using another thread would cost more than it saves.
_MIN_AHEAD = 64
# How far ahead of the caller vectors are computed, in groups and in bytes.
_MOST_AHEAD, _BYTES_AHEAD = 16, 256 << 20
# Seconds between polls of a queue while batches are running and a device can take one more.
_POLL_S = 0.002


class Loop:
    """Computes results for texts or for queued items, with a tokenizer and the runner of its model.

    Args:
        tokenizer: the checkpoint's tokenizer.
        runner: computes batches.
        max_batch_tokens: maximum tokens computed per batch; None for the default of the runner's devices.
    """

    def __init__(
        self, tokenizer: TextTokenizer, runner: Runner, max_batch_tokens: int | None = None
    ) -> None:
        self.tokenizer, self.runner = tokenizer, runner
        self._check_process = partial(check_process, runner.name, os.getpid())
        self.budget = BatchBudget(max_batch_tokens or runner.batch_tokens, runner.name)

    # The core.

    def run(
        self,
        source: Take[Group],
        task: Task | None = None,
        *,
        in_order: bool = True,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[FinishedBatch]:
        """Yield the results of each batch. A failed batch affects only its own items, a bad vector only its own text.

        While the loop waits for one batch, up to `runner.depth` more have been started.

        Args:
            source: called with `wait`, which is True only while no batch is running. Returns the next group, or None if
                there is none yet and `wait` is False; raises StopIteration at the end.
            task: the task for all items; None computes vectors in the items' formats.
            in_order: whether to yield batches in the order in which they were started, rather than as they finish.
            stopped: returns whether to stop; called before each batch.

        Raises:
            Exception: an exception of `source`, raised again after the results of all earlier groups.
        """
        ready: deque[tuple[Group, Forest]] = deque()
        started: list[tuple[Group, Forest, float, Wait]] = []
        failure: Exception | None = None
        more, began, done = True, 0.0, 0.0
        while (more or ready or started) and not stopped():
            self._check_process()
            while len(started) <= self.runner.depth and (ready or more):
                if not ready:
                    try:
                        group = source(not started)
                    except Exception as error:  # noqa: BLE001  reading the texts may raise anything
                        failure, more = error, False
                        break
                    if group is None:
                        break
                    if group.refused:
                        yield list_refused(group)
                    ready.extend((group, forest) for forest in group.forests)
                    began = group.began
                    continue
                group, forest = ready.popleft()
                forest, *rest = self.budget.split_to_fit(forest)
                ready.extendleft((group, part) for part in reversed(rest))
                started.append((group, forest, began, self._start(group, task, forest)))
                began = perf_counter()
            # a device that can take one more batch should not wait: poll the source again soon
            seconds = _POLL_S if more and len(started) <= self.runner.depth else None
            place = 0 if in_order else wait_for_first([wait for *_, wait in started], seconds)
            if not started or place is None:
                continue
            group, forest, batch_began, wait = started.pop(place)
            start = partial(self._start, group, task)
            for part, result in compute_parts(forest, wait, start, self.budget):
                # batches overlap in time; do not count the overlap twice
                before, done = max(batch_began, done), perf_counter()
                yield finish_batch(group, part, result, task, done - before)
        if failure is not None and not isinstance(failure, StopIteration):
            raise failure

    def _start(self, group: Group, task: Task | None, forest: Forest) -> Wait:
        """Start a batch; if that fails, the returned wait raises the error."""
        try:
            return self.runner.start(task or embed_task(group, forest), forest)
        except Exception as error:  # noqa: BLE001  it belongs to the items of this batch
            return raise_on_wait(error)

    def warm_up(self) -> None:
        """Warm the runner up for batches of up to the budget, but not for longer texts; see `Runner.warm_up`."""
        self._check_process()
        self.runner.warm_up(self.budget.limit)

    # From texts, in order.

    def matrices(
        self,
        texts: Iterable[str],
        options: EncodeOptions,
        report: Report,
        advance: Callable[[int], None],
        *,
        task: Task | None = None,
        ahead: bool = False,
    ) -> Iterator[Tensor]:
        """Yield one matrix per group of texts with one row per text, in the caller's order.

        Args:
            texts: read only by the caller's thread, several groups ahead.
            options: the settings of the call.
            report: a group's counts are added to it when the caller takes the group's matrix.
            advance: called with the number of texts of each finished batch.
            task: as for `run`.
            ahead: whether to compute in a background thread while the caller uses a matrix, if the runner allows it.

        Raises:
            InputError: a text cannot be embedded; the error gives its index. It is raised after the matrices of all
                earlier groups. `options.on_error`, if set, is called with the error instead, and the matrix of the
                text's group has no row for the text.
        """
        groups, keep_going = self.groups(texts, options), options.on_error is not None
        if ahead and self.runner.ahead:
            prepare = partial(self._prepare, options)
            compute = partial(self._in_order, task, advance, keep_going)
            most = min(_MOST_AHEAD, max(1, _BYTES_AHEAD // (GROUP_TEXTS * 4 * options.format.dim)))
            numbered = split_into_groups(iter(texts), small_first=True)
            matrices = run_ahead(numbered, prepare, compute, 1 + most)
        else:
            matrices = self._in_order(task, advance, keep_going, lambda _: next(groups))
        with closing(groups), closing(matrices):
            for matrix, items, counts, errors in matrices:
                report.add(counts)
                if options.on_error is not None:
                    for error in errors:
                        options.on_error(error)
                if matrix is not None:
                    if options.on_rows is not None:
                        options.on_rows([(len(item.ids), item.cut) for item in items])
                    yield matrix
                self._check_process()  # the caller may have forked

    def gather(
        self,
        nothing: Tensor,
        texts: Sequence[str],
        options: EncodeOptions,
        report: Report,
        advance: Callable[[int], None],
        *,
        task: Task | None = None,
    ) -> Tensor:
        """Return the rows of all matrices that `matrices` yields, as one tensor with one row per text.

        Args:
            nothing: an empty tensor [0, …] with the shape and dtype of the rows.
            texts: the texts.
            options: as for `matrices`.
            report: as for `matrices`.
            advance: as for `matrices`.
            task: as for `run`.
        """
        rows, done = new_rows(nothing, len(texts)), 0
        for matrix in self.matrices(texts, options, report, advance, task=task):
            rows[done : done + len(matrix)] = matrix
            done += len(matrix)
        return rows

    def _in_order(
        self,
        task: Task | None,
        advance: Callable[[int], None],
        keep_going: bool,  # noqa: FBT001  private
        source: Take[Group],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[GroupResult]:
        """Yield the result of each group, in order; raise the first error of a batch unless `keep_going`."""
        groups = GroupsInOrder(source, keep_going=keep_going)
        for batch in self.run(groups.take, task, stopped=stopped):
            advance(len(batch.texts))
            yield from groups.add(batch)

    def plan(self, texts: Iterable[str], options: EncodeOptions) -> Report:
        """Tokenise and pack texts as `matrices` does, and return their counts; no batch is computed."""
        report = Report()
        for group in self.groups(texts, options):
            for counts in (group.counts, *map(counts_of, group.forests)):
                report.add(counts)
        return report

    def token_ids(self, texts: Iterable[str], options: EncodeOptions) -> Iterator[list[int]]:
        """Yield the token ids of each text as the model would get them: with prompt and template, cut to max_length."""
        for numbered in split_into_groups(iter(texts)):
            yield from self._tokens(options, numbered).ids.values()

    def groups(self, texts: Iterable[str], options: EncodeOptions) -> Generator[Group]:
        """Yield groups that are ready to compute; if the runner allows it, a thread prepares the next one meanwhile."""
        numbered = split_into_groups(iter(texts), small_first=self.runner.ahead)
        prepare = partial(self._prepare, options)
        if self.runner.ahead:
            yield from map_ahead(
                prepare, numbered, at_once=lambda group: len(group[1]) < _MIN_AHEAD
            )
        else:
            yield from map(prepare, numbered)

    def _prepare(self, options: EncodeOptions, numbered: tuple[int, list[str]]) -> Group:
        """Tokenise and pack a group; `numbered` is (the caller's index of its first text, the texts)."""
        began, tokens = perf_counter(), self._tokens(options, numbered)
        prompt = self.tokenizer.prompt_ids(options.prompt, self.runner.max_prompt_tokens)
        items = [
            Item(i, ids, options.format, prompt, cut=i in tokens.cut)
            for i, ids in tokens.ids.items()
        ]
        counts = Report(texts=len(items), cut=len(tokens.cut), unknown=tokens.unknown)
        counts.unknown_word = tokens.unknown_word
        refused = [(Item(error.index, ()), error) for error in tokens.errors]
        return Group(items, self._forests(items), began, counts, refused)

    def _tokens(self, options: EncodeOptions, numbered: tuple[int, list[str]]) -> GoodTokens:
        self._check_process()  # before the tokenizer's threads are used
        return self.tokenizer.encode_good(
            numbered[1],
            options.max_length,
            prompt=options.prompt,
            first=numbered[0],
            stopped=is_abandoned,
            refuse_long=options.too_long == "error",
            keep_going=options.on_error is not None,
        )

    def _forests(self, items: list[Item]) -> list[Forest]:
        ids, prompts = [item.ids for item in items], [item.prompt for item in items]
        return list(plan_forests(ids, self.budget.tokens, prompts=prompts))

    # From a queue, as they finish.

    def results(
        self, queue: ItemQueue, report: Report | None = None, task: Task | None = None
    ) -> Iterator[tuple[object, Tensor | Exception]]:
        """Yield (tag, tensor or error) for each item from a queue, as batches finish.

        When a device can take a batch, the items that are then in the queue, at most 4,096, form a group: they are
        sorted and packed together.

        Args:
            queue: gives items, each with a format; None marks the end.
            report: receives the counts.
            task: as for `run`.
        """
        items = QueuedItems(queue, self.tokenizer.vocab_size)
        for batch in self.run(partial(items.take, self._forests), task, in_order=False):
            if report is not None:
                report.add(batch.counts)
                report.texts += len(batch.texts)
            yield from batch.results()
