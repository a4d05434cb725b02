"""The texts that wait for the device: small requests first, clients in turn, equal texts once, cancelled ones never.

submit ─► lanes ─► get ─► Loop.results ─► deliver ─► the requests that wait for the text
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty
from time import monotonic

from torch import Tensor

from lastword.model.postprocess import VectorFormat
from lastword.runtime.results import Item
from lastword.serve.texts import Prepared

# Of so many groups in a row, one is of large requests if any wait, whatever small ones wait.
_TURNS = 4
# Clients remembered for fairness before those that have had no more than the others are forgotten.
_MOST_OWNERS = 1024


class Job:
    """One request in the queue, and its results as they come.

    Args:
        owner: the client, for fairness.
        prepared: its texts.
        done: called by the thread of the device once all texts have a result.
    """

    def __init__(self, owner: str, prepared: Prepared, done: Callable[[], object]) -> None:
        self.owner, self.prepared, self.done = owner, prepared, done
        self.began = monotonic()
        self.started: float | None = None  # when the device took the first of its texts
        self.results: list[Tensor | Exception | None] = [None] * len(prepared.ids)
        self.left = len(prepared.ids)
        self.computed = 0.0  # its share of the tokens that were computed
        self.waits: list[Waiting] = []


@dataclass(slots=True, eq=False)
class Waiting:
    """One distinct text in the queue or on the device, and the places of the jobs that wait for it."""

    key: tuple[tuple[int, ...], VectorFormat]
    prompt: tuple[int, ...]
    owner: str
    lane: "Lane | None"  # None once the device has it
    since: float
    jobs: list[tuple[Job, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Number of its tokens."""
        return len(self.key[0])

    def __str__(self) -> str:
        """Return how the loop's errors name it: nothing of the text itself."""
        return "of the request"


class Lane:
    """Waiting texts of several clients; the client that has had the fewest tokens is next."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[int, Waiting]] = {}  # in the order of arrival
        self._had: dict[str, float] = {}
        self._floor = 0.0  # of the client served last: a new one starts there, not at nothing

    def __bool__(self) -> bool:
        return bool(self._owners)

    def add(self, text: Waiting) -> None:
        """Put a text behind those of its client."""
        self._had[text.owner] = max(self._had.get(text.owner, 0.0), self._floor)
        self._owners.setdefault(text.owner, {})[id(text)] = text

    def remove(self, text: Waiting) -> None:
        """Take a text out."""
        texts = self._owners[text.owner]
        del texts[id(text)]
        if not texts:
            del self._owners[text.owner]
            if len(self._had) > _MOST_OWNERS:
                self._had = {
                    o: had for o, had in self._had.items() if had > self._floor or o in self._owners
                }

    def pop(self) -> Waiting:
        """Take out the next text."""
        owner = min(self._owners, key=self._had.__getitem__)
        text = next(iter(self._owners[owner].values()))
        self._floor = self._had[owner]
        self._had[owner] += text.tokens
        self.remove(text)
        return text

    def oldest(self) -> float | None:
        """Return since when the text that arrived first waits."""
        firsts = [next(iter(texts.values())).since for texts in self._owners.values()]
        return min(firsts, default=None)


class WaitingTexts:
    """The queue that `Loop.results` reads; safe to use from several threads.

    A group of the loop is one batch's tokens at most, so that what arrives meanwhile can go before what waits.

    Args:
        interactive_tokens: a job of at most so many tokens goes before larger ones.
    """

    def __init__(self, interactive_tokens: int) -> None:
        self._interactive_tokens = interactive_tokens
        self.group_tokens = 1024  # set to a batch's tokens once the model is loaded
        self._changed = threading.Condition()
        self._small, self._large = Lane(), Lane()
        self._known: dict[tuple[tuple[int, ...], VectorFormat], Waiting] = {}
        self._group: Lane | None = None
        self._room, self._turn, self._closed = 0, 0, False
        self.tokens = 0  # of the texts that wait
        self.texts = 0

    def submit(self, job: Job) -> bool:
        """Queue the texts of a job; those that wait or are computed already are waited for only.

        Returns:
            False if the queue is closed.
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
                    text = Waiting(key, prepared.prompt, job.owner, lane, monotonic())
                    self._known[key] = text
                    self._count(text, 1)
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
        """Take out the texts that only this job waits for, unless the device has them."""
        with self._changed:
            for text in job.waits:
                text.jobs = [pair for pair in text.jobs if pair[0] is not job]
                if not text.jobs and text.lane is not None:
                    text.lane.remove(text)
                    text.lane = None
                    self._count(text, -1)
                    del self._known[text.key]
            job.waits.clear()

    def get(self, block: bool = True) -> Item | None:  # noqa: FBT001, FBT002  as of a queue.Queue
        """Return the next item of the group; None once the queue is closed and empty.

        Raises:
            Empty: the group is complete, or nothing waits.
        """
        with self._changed:
            if block:
                self._group = None  # a new group
            text = self._next()
            while text is None and block and not self._closed:
                self._changed.wait()
                text = self._next()
            if text is not None:
                return Item(text, text.key[0], text.key[1], text.prompt)
            if self._closed and not self._small and not self._large:
                return None
            raise Empty

    def _next(self) -> Waiting | None:
        if self._group is None:
            self._group, self._room = self._choose(), self.group_tokens
        if not self._group or self._room <= 0:
            self._group = None
            return None
        text = self._group.pop()
        text.lane = None
        self._room -= text.tokens
        self._count(text, -1)
        for job, _ in text.jobs:
            job.started = job.started or monotonic()
        return text

    def _choose(self) -> Lane | None:
        """Choose the lane of the next group."""
        if not self._small and not self._large:
            return None
        self._turn = (self._turn + 1) % _TURNS
        if self._small and not (self._large and self._turn == 0):
            return self._small
        return self._large

    def deliver(self, text: Waiting, result: Tensor | Exception, computed: float) -> None:
        """Give a text's result to the jobs that wait for it.

        Args:
            text: the tag of its item.
            result: its vector or its error.
            computed: its share of the tokens that its batch computed.
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
        """Give every text, waiting or on the device, this error, and accept no more."""
        with self._changed:
            self._closed = True
            texts = list(self._known.values())
            self._small, self._large, self._group = Lane(), Lane(), None
            self.tokens = self.texts = 0
            self._changed.notify()
        for text in texts:
            self.deliver(text, error, 0.0)

    def close(self) -> None:
        """Accept no more; the loop ends once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def age(self) -> float:
        """Return for how many seconds the text that arrived first has waited."""
        with self._changed:
            ages = [at for at in (self._small.oldest(), self._large.oldest()) if at is not None]
        return monotonic() - min(ages) if ages else 0.0

    def _count(self, text: Waiting, sign: int) -> None:
        self.tokens += sign * text.tokens
        self.texts += sign
