"""The one loop: texts → token ids → forests → a tensor per batch → results in the caller's order.

    texts ─ groups ─► Group of items ─ plan_forests ─► forests ─ runner.start(task) ─► Finished ─► matrices in order

`finished` is the core: it takes groups of items, from texts or from a queue, and yields what each batch gives as
batches finish. `matrices` (order, raising, counts), `results` (one item at a time) and `plan` are thin around it.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from queue import Empty, Queue
from time import perf_counter

import torch
from torch import Tensor

from lastword.batching.forest import Forest, plan_forests
from lastword.options import EncodeOptions
from lastword.report import Report
from lastword.runtime.out_of_memory import BatchBudget, computed_parts
from lastword.runtime.results import Finished, Group, Item, counts_of, embed_task, finished_batch
from lastword.runtime.runner import Runner, Task, Wait
from lastword.runtime.threads import map_ahead, run_ahead
from lastword.text.groups import cut_groups
from lastword.text.tokenizer import TextTokenizer

# A group of fewer texts is prepared in the caller's thread: the hand-over would cost more than it hides.
_MIN_AHEAD = 64
# Groups of vectors that may lie ready while their reader is busy: up to 16 MB each at 1024 dimensions.
_GROUPS_AHEAD = 8
# Items that one group takes from a queue at most.
_QUEUE_ITEMS = 4096


# The next group; None where there is none yet and `wait` is not set. StopIteration where there will be none.
Source = Callable[[bool], Group | None]


class Loop:
    """A tokenizer, what runs the model that belongs to it, and the budget of a batch.

    Args:
        tokenizer: of the checkpoint.
        runner: what computes batches.
        max_batch_tokens: None for what suits the runner's devices.
    """

    def __init__(
        self, tokenizer: TextTokenizer, runner: Runner, max_batch_tokens: int | None = None
    ) -> None:
        self.tokenizer, self.runner = tokenizer, runner
        self.budget = BatchBudget(max_batch_tokens or runner.batch_tokens)

    # The core.

    def finished(self, source: Source, task: Task | None = None) -> Iterator[Finished]:
        """Yield what each batch gives, in the order in which batches were started.

        An error belongs to its items and ends nothing else. Batches are started `runner.depth` further than the one
        waited for; `source` is asked to wait only where none is under way.

        Args:
            source: gives groups.
            task: what to compute of every item; None for vectors by the items' formats.

        Raises:
            Exception: what `source` raised, once the groups before it are done.
        """
        self.budget.new_call()
        ready: deque[tuple[Group, Forest]] = deque()
        started: deque[tuple[Group, Forest, float, Wait]] = deque()
        failure: Exception | None = None
        more, done = True, 0.0
        while more or ready or started:
            while len(started) <= self.runner.depth and (ready or more):
                if not ready:
                    try:
                        group = source(not started)
                    except Exception as error:  # noqa: BLE001  whatever reading the texts raises
                        failure, more = error, False
                        break
                    if group is None:
                        break
                    ready.extend((group, forest) for forest in group.forests)
                    began = group.began
                group, forest = ready.popleft()
                started.append((group, forest, began, self._start(group, task, forest)))
                began = perf_counter()
            if started:
                group, forest, began_batch, wait = started.popleft()
                start = partial(self._start, group, task)
                too_large = partial(self.budget.lower, device=self.runner.name)
                for part, result in computed_parts(forest, wait, start, too_large):
                    self.budget.fitted()
                    # batches overlap where several are under way: no second is counted twice
                    before, done = max(began_batch, done), perf_counter()
                    yield finished_batch(group, part, result, task, done - before)
        if failure is not None and not isinstance(failure, StopIteration):
            raise failure

    def _start(self, group: Group, task: Task | None, forest: Forest) -> Wait:
        """Begin a batch; what cannot be begun fails where it is waited for."""
        try:
            return self.runner.start(task or embed_task(group, forest), forest)
        except Exception as error:  # noqa: BLE001  it belongs to the items of this batch
            return partial(_raise, error)

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
        """Yield a matrix per group of texts, a row per text, in the caller's order.

        Args:
            texts: read a group or two further than is yielded.
            options: of the call.
            report: counts are added to it, here alone, as matrices are taken.
            advance: told of texts done.
            task: as for `finished`.
            ahead: where the runner has time for it, compute in a thread of its own while the matrices are used.

        Raises:
            InputError: names a text by its index, after the matrices of all groups before its own.
        """
        matrices = self._in_order(self.groups(texts, options), task, advance)
        if ahead and self.runner.ahead:
            matrices = run_ahead(matrices, _GROUPS_AHEAD)
        with closing(matrices):
            for matrix, counts in matrices:
                report.add(counts)
                yield matrix

    def _in_order(
        self, groups: Generator[Group], task: Task | None, advance: Callable[[int], None]
    ) -> Generator[tuple[Tensor, Report]]:
        """Gather a matrix and the counts of each group; the first error of a batch is raised."""
        out: Tensor | None = None
        left, counts = 0, Report()
        with closing(groups):
            for batch in self.finished(lambda _: next(groups), task):
                if batch.errors:
                    raise batch.errors[min(batch.errors)]
                assert isinstance(batch.rows, Tensor)  # the items of one call have one format
                if out is None:
                    left, counts = len(batch.group.items), Report()
                    counts.add(batch.group.counts)
                    out = torch.empty(left, *batch.rows.shape[1:], dtype=batch.rows.dtype)
                out[batch.texts] = batch.rows
                counts.add(batch.counts)
                advance(len(batch.texts))
                left -= len(batch.texts)
                if not left:
                    yield out, counts
                    out = None

    def plan(self, texts: Iterable[str], options: EncodeOptions) -> Report:
        """Count what `matrices` would compute."""
        report = Report()
        for group in self.groups(texts, options):
            report.add(group.counts)
            for forest in group.forests:
                report.add(counts_of(forest))
        return report

    def groups(self, texts: Iterable[str], options: EncodeOptions) -> Generator[Group]:
        """Yield groups ready to be computed; a runner with time for it has the next one prepared in a thread."""
        cut = cut_groups(iter(texts), small_first=self.runner.ahead)
        prepare = partial(self._prepare, options)
        if self.runner.ahead:
            yield from map_ahead(prepare, cut, at_once=lambda group: len(group[1]) < _MIN_AHEAD)
        else:
            yield from map(prepare, cut)

    def _prepare(self, options: EncodeOptions, numbered: tuple[int, list[str]]) -> Group:
        """Tokenise and pack a group of texts; `numbered` has the caller's index of the first of them."""
        began, (first, texts) = perf_counter(), numbered
        tokens = self.tokenizer.encode(
            texts, options.max_length, prompt=options.prompt, first=first
        )
        if options.too_long == "error":
            tokens.refuse_cut(options.max_length, first=first)
        items = [Item(first + i, ids, options.format) for i, ids in enumerate(tokens.ids)]
        counts = Report(texts=len(texts), cut=sum(tokens.cut))
        return self._group(items, began, counts)

    def _group(self, items: list[Item], began: float, counts: Report) -> Group:
        forests = plan_forests([item.ids for item in items], self.budget.tokens)
        return Group(items, list(forests), began, counts)

    # From a queue, as they finish.

    def results(self, queue: "Queue[Item | None]") -> Iterator[tuple[object, Tensor | Exception]]:
        """Yield (tag, tensor or error) of each item that comes through a queue, as batches finish; None ends it.

        What lies in the queue when the device has room for a batch is sorted and packed together.
        """
        ended = False

        def take(wait: bool) -> Group | None:  # noqa: FBT001  a Source
            nonlocal ended
            items: list[Item] = []
            with suppress(Empty):
                while not ended and len(items) < _QUEUE_ITEMS:
                    item = queue.get(block=wait and not items)
                    ended = item is None
                    if item is not None:
                        items.append(item)
            if items:
                return self._group(items, perf_counter(), Report(texts=len(items)))
            if ended:
                raise StopIteration
            return None

        for batch in self.finished(take):
            yield from batch.results()


def _raise(error: Exception) -> Tensor:
    raise error
