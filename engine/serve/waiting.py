"""The queue of texts for the device. Small requests go first, clients take turns, equal texts share one result.

submit ─► lanes ─► get ─► Loop.results ─► deliver ─► the jobs that wait for the text

A job is a request in the queue. A lane is a queue for requests of one size, small or large. `Loop.results` reads
texts in groups; a group is at most one batch of texts, all from one lane.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from queue import Empty
from time import monotonic

from torch import Tensor

from lastword.model.postprocess import VectorFormat
from lastword.runtime.results import Item
from lastword.serve.texts import Prepared

# One in this many groups comes from the lane of large requests, if any wait; the others prefer small ones.
_LARGE_EVERY = 4
# A lane that knows more clients than this forgets each client that has no waiting text and has been given no more
# tokens than a new client starts with.
_MAX_OWNERS = 1024


class Job:
    """One request in the queue, and its results as they come.

    Args:
        owner: the client; clients take turns.
        prepared: the texts of the request.
        done: called once every text has a result. The server's queue calls it in the device's thread.
    """

    def __init__(self, owner: str, prepared: Prepared, done: Callable[[], object]) -> None:
        self.owner, self.prepared, self.done = owner, prepared, done
        self.began = monotonic()
        self.started: float | None = None  # when the device took the job's first text
        self.results: list[Tensor | Exception | None] = [None] * len(prepared.ids)
        self.left = len(prepared.ids)  # number of texts without a result
        self.computed = 0.0  # the job's share of the tokens that were computed
        self.waits: list[WaitingText] = []


@dataclass(slots=True, eq=False)
class WaitingText:
    """A text in the queue or on the device. Equal texts share one object, even if they come from different requests.

    Args:
        key: the text's token ids and the format of its result; texts with equal keys are equal.
        prompt: token ids of the prompt, if the model may keep the prompt's keys and values, else ().
        owner: the client that sent the text first.
        lane: the lane in which the text waits; None once the device has the text.
        since: when the text entered the queue, by `monotonic()`.
        jobs: the jobs that wait for the text, each with the text's index in the job.
    """

    key: tuple[tuple[int, ...], VectorFormat]
    prompt: tuple[int, ...]
    owner: str
    lane: "Lane | None"
    since: float
    jobs: list[tuple[Job, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Number of tokens in the text."""
        return len(self.key[0])

    @property
    def item(self) -> Item:
        """The text as an item of the loop."""
        return Item(self, self.key[0], self.key[1], self.prompt)

    def __str__(self) -> str:
        """Return how the loop's errors name the text, without quoting it: `text of the request`."""
        return "of the request"


class Lane:
    """Waiting texts of several clients. The client that has been given the fewest tokens is served next."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[int, WaitingText]] = {}  # per client, in order of arrival
        self._given: dict[str, float] = {}  # tokens given to each client
        # The tokens that the client served last had been given until then. A new client starts with this number; with
        # 0, it would be served alone until it had caught up with the others.
        self._floor = 0.0

    def __bool__(self) -> bool:
        return bool(self._owners)

    def add(self, text: WaitingText) -> None:
        """Add a text after the others of its client."""
        self._given[text.owner] = max(self._given.get(text.owner, 0.0), self._floor)
        self._owners.setdefault(text.owner, {})[id(text)] = text

    def remove(self, text: WaitingText) -> None:
        """Remove a text."""
        texts = self._owners[text.owner]
        del texts[id(text)]
        if not texts:
            del self._owners[text.owner]
            if len(self._given) > _MAX_OWNERS:
                self._given = {
                    o: had
                    for o, had in self._given.items()
                    if had > self._floor or o in self._owners
                }

    def pop(self, room: float) -> WaitingText | None:
        """Remove and return the next text, or return None if its `Item.room` is more than `room`."""
        owner = min(self._owners, key=self._given.__getitem__)
        text = next(iter(self._owners[owner].values()))
        if text.item.room > room:
            return None
        self._floor = self._given[owner]
        self._given[owner] += text.tokens
        self.remove(text)
        return text

    def oldest(self) -> float | None:
        """Return when the oldest text arrived, by `monotonic()`; None if no text waits."""
        firsts = [next(iter(texts.values())).since for texts in self._owners.values()]
        return min(firsts, default=None)


class WaitingTexts:
    """The queue that `Loop.results` reads; safe to use from several threads.

    A group ends before the first text for which it would need a second batch: that batch would be almost empty, and a
    small request that arrives meanwhile can be in the next group.

    Args:
        interactive_tokens: jobs of at most this many tokens go ahead of larger ones.
    """

    def __init__(self, interactive_tokens: int) -> None:
        self._interactive_tokens = interactive_tokens
        self.group_tokens = 1024  # set to the tokens of a full batch once the model is loaded
        self._changed = threading.Condition()
        self._small, self._large = Lane(), Lane()
        self._known: dict[tuple[tuple[int, ...], VectorFormat], WaitingText] = {}
        self._group: Lane | None = None
        self._room, self._turn, self._closed = 0, 0, False
        self.tokens = self.texts = 0  # in the queue

    def submit(self, job: Job) -> bool:
        """Queue the texts of a job. A text equal to one in the queue or on the device shares its result.

        Returns:
            False if the queue is closed, else True.
        """
        prepared = job.prepared
        lane = self._small if prepared.tokens <= self._interactive_tokens else self._large
        with self._changed:
            if self._closed:
                return False
            for place, ids in enumerate(prepared.ids):
                key = ids, prepared.format
                text = self._known.get(key)
                if text is None:
                    text = WaitingText(key, prepared.prompt, job.owner, lane, monotonic())
                    self._known[key] = text
                    self._add_to_totals(text, 1)
                    lane.add(text)
                elif text.lane is self._large and lane is self._small:
                    text.lane.remove(text)
                    text.lane = lane
                    lane.add(text)
                text.jobs.append((job, place))
                job.waits.append(text)
            self._changed.notify()
            return True

    def cancel(self, job: Job) -> None:
        """Make a job stop waiting for its texts.

        A text that no other job waits for leaves the queue, unless the device already has it.
        """
        with self._changed:
            for text in job.waits:
                text.jobs = [pair for pair in text.jobs if pair[0] is not job]
                if not text.jobs and text.lane is not None:
                    text.lane.remove(text)
                    text.lane = None
                    self._add_to_totals(text, -1)
                    del self._known[text.key]
            job.waits.clear()

    def get(self, block: bool = True) -> Item | None:  # noqa: FBT001, FBT002  as queue.Queue has it
        """Return the next item of the group; None once the queue is closed and empty.

        Args:
            block: whether to begin a new group and wait for its first item.

        Raises:
            Empty: the group is complete, or no text is waiting; only without `block`.
        """
        with self._changed:
            if block:
                self._group = None
            text = self._next()
            while text is None and block and not self._closed:
                self._changed.wait()
                text = self._next()
            if text is not None:
                return text.item
            if self._closed and not self._small and not self._large:
                return None
            raise Empty

    def _next(self) -> WaitingText | None:
        room: float = self._room
        if self._group is None:
            self._group, self._room = self._choose(), self.group_tokens
            room = inf  # a text that is longer than a batch is a group of its own
        text = self._group.pop(room) if self._group else None
        if text is None:
            self._group = None
            return None
        text.lane = None
        self._room -= text.item.room
        self._add_to_totals(text, -1)
        for job, _ in text.jobs:
            job.started = job.started or monotonic()
        return text

    def _choose(self) -> Lane | None:
        """Return the lane of the next group; None if no text is waiting."""
        if not self._small and not self._large:
            return None
        self._turn = (self._turn + 1) % _LARGE_EVERY
        if self._small and not (self._large and self._turn == 0):
            return self._small
        return self._large

    def deliver(self, text: WaitingText, result: Tensor | Exception, computed: float) -> None:
        """Give a text's result to the jobs that wait for it.

        Args:
            text: the text, which is also the tag of its item in the loop.
            result: the text's vector (for a reranker, its log-odds), or its error.
            computed: the text's share of the tokens that its batch computed; it is divided equally among the jobs.
        """
        with self._changed:
            jobs, text.jobs = text.jobs, []
            self._known.pop(text.key, None)
            finished = []
            for job, place in jobs:
                job.results[place] = result
                job.computed += computed / len(jobs)
                job.left -= 1
                if job.left == 0:
                    finished.append(job)
        for job in finished:
            job.done()

    def fail(self, error: Exception) -> None:
        """Close the queue, and give `error` as the result of every text in the queue or on the device."""
        with self._changed:
            self._closed = True
            texts = list(self._known.values())
            self._small, self._large, self._group = Lane(), Lane(), None
            self.tokens = self.texts = 0
            self._changed.notify()
        for text in texts:
            self.deliver(text, error, 0.0)

    def close(self) -> None:
        """Accept no more texts; the loop that reads the queue ends once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def age(self) -> float:
        """Return how many seconds the oldest text has waited; 0 if none waits."""
        with self._changed:
            ages = [at for at in (self._small.oldest(), self._large.oldest()) if at is not None]
        return monotonic() - min(ages) if ages else 0.0

    def _add_to_totals(self, text: WaitingText, sign: int) -> None:
        self.tokens += sign * text.tokens
        self.texts += sign
