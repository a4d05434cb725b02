"""Compute the same answers as the server to the requests of a batch file, with the texts of many requests at once.

Each group of requests is prepared (checked, tokenised), its texts are put into the queues of the models, the engine's
loop computes them, and the answers are written as lines.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from queue import Empty
from typing import Any

import torch
from torch import Tensor

from lastword.batch_files.requests import Request, RequestGroup, RequestReader
from lastword.batch_files.results import ID, ResultsFile
from lastword.embedder import Embedder
from lastword.errors import DeviceError, InputError
from lastword.model_info import fingerprint
from lastword.report import Report
from lastword.reranker import Reranker
from lastword.runtime.results import Item
from lastword.runtime.threads import map_ahead
from lastword.serve.answers import Answer, stack, to_json
from lastword.serve.errors import ServeError, check_model_name, device_error
from lastword.serve.http.routes import ROUTES
from lastword.serve.pairs import RerankCall, Scores, prepare_pairs, scores_of
from lastword.serve.protocols.body import Body, validate
from lastword.serve.settings import Settings, served_name
from lastword.serve.texts import EmbedCall, Prepared, Preparer
from lastword.serve.waiting import Job
from lastword.serve.worker import results_with_shares


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """A text of a job, or a pair for a reranker; it is the tag of its item in the loop."""

    job: Job
    place: int

    @property
    def item(self) -> Item:
        """The text as an item of the loop."""
        prepared = self.job.prepared
        return Item(self, prepared.ids[self.place], prepared.format, prepared.prompt)

    def __str__(self) -> str:
        """Return how the loop's errors name the text, as in the server's answers."""
        return "of the request"


class GroupQueue:
    """The queue that the loop reads: groups of texts, so that no batch has texts of two groups.

    Args:
        more: called with `block` when the queue is empty. Adds the next group, or returns False at the end of the
            input. Without `block` it may raise Empty, if enough groups are read already.
    """

    def __init__(self, more: Callable[[bool], bool]) -> None:
        self._more = more
        self._texts: deque[_Text | None] = deque()  # None ends a group

    def add(self, texts: Sequence[_Text]) -> None:
        """Add a group, which may be empty."""
        if texts:
            self._texts.extend(texts)
            self._texts.append(None)

    def get(self, block: bool = True) -> Item | None:  # noqa: FBT001, FBT002  as queue.Queue has it
        """Return the next item, or None at the end of the input.

        Args:
            block: whether to go on after the end of a group.

        Raises:
            Empty: the group ends here, or the next group has no text for this queue; only without `block`.
        """
        while True:
            while not self._texts:
                if not self._more(block):
                    return None
                if not self._texts and not block:
                    raise Empty
            text = self._texts.popleft()
            if text is not None:
                return text.item
            if not block:
                raise Empty


class Answers:
    """Answers the requests for one path with one model.

    Args:
        path: the path, a key of `ROUTES`.
        model: the model.
        settings: the settings of a server that would give these answers.
        name: the name that requests and answers use for the model; None for its own name.
    """

    def __init__(
        self, path: str, model: Embedder | Reranker, settings: Settings, name: str | None
    ) -> None:
        self.path, self.model, self.settings = path, model, settings
        self.name = served_name(model.name) if name is None else name
        self.report = Report()

    def begin(self, more: Callable[[bool], bool]) -> None:
        """Make the queue; `more` as for `GroupQueue`."""
        self.queue = GroupQueue(more)
        self._results = results_with_shares(self.model, self.queue, self.report)

    def prepare(self, body: object, done: Callable[[], object]) -> tuple[Body, Job]:
        """Check the body of a request, and tokenise its texts.

        Args:
            body: the body.
            done: called once every text has a result.

        Raises:
            ServeError: the request cannot be answered.
        """
        route = ROUTES[self.path]
        asked = validate(route.body, body)
        check_model_name(getattr(asked, "model", None), self.name)
        return asked, Job("", self._prepare(route.call(asked)), done)

    def compute(self) -> None:
        """Compute until the next result is there, and give it to its job."""
        text, result, share = next(self._results)
        assert isinstance(text, _Text)
        job = text.job
        job.results[text.place] = result
        job.computed += share * len(job.prepared.ids[text.place])
        job.left -= 1
        if not job.left:
            job.done()

    def check(self, job: Job) -> None:
        """Check that all failures of a job are due to its own texts.

        Raises:
            DeviceError: the device has failed; another attempt may succeed.
        """
        for each in job.results:
            if isinstance(each, Exception) and not isinstance(each, InputError):
                raise DeviceError(
                    f"device {self.model.loop.runner.name}",
                    "failed",
                    got=f"{type(each).__name__}: {each}",
                    remedy="Run the same command again to continue, unless its input or output is a pipe.",
                ) from each

    def render(self, asked: Body, job: Job) -> Any:
        """Return the answer to a request from the results of its job.

        Raises:
            ServeError: a text could not be computed, or the vectors cannot be given in the form that is asked for.
        """
        results = list[Tensor]()
        for each in job.results:
            if not isinstance(each, Tensor):
                raise device_error(each or RuntimeError())
            results.append(each)
        job.results.clear()
        return ROUTES[self.path].render(asked, self._answer(job, results))

    def facts(self) -> dict[str, Any]:
        """Return the model's settings on which the answers depend, by name in words."""
        device, cpu = self.model.info.devices[0].type, self.model.info.devices[0].type == "cpu"
        return {
            "name of the model": self.name,
            "device": device,
            "number of threads": torch.get_num_threads() if cpu else None,
            "--max-batch-tokens": self.model.max_batch_tokens,
        }

    def _prepare(self, call: Any) -> Prepared:
        raise NotImplementedError

    def _answer(self, job: Job, results: list[Tensor]) -> Answer | Scores:
        raise NotImplementedError


class EmbeddingAnswers(Answers):
    """Answers requests for vectors; `ranges` as for `Answer`, the other arguments as for `Answers`."""

    def __init__(self, model: Embedder, settings: Settings, ranges: Tensor | None = None) -> None:
        super().__init__("/v1/embeddings", model, settings, settings.model_name)
        self._embedder, self._ranges = model, ranges
        self._preparer = Preparer(model, settings)
        self._space = lru_cache(256)(self._find_space)

    def _prepare(self, call: EmbedCall) -> Prepared:
        return self._preparer.prepare(call)

    def _answer(self, job: Job, results: list[Tensor]) -> Answer:
        wanted = job.prepared.format
        return Answer(
            stack(results),
            job.prepared,
            round(job.computed),
            self._space(wanted.dim, wanted.normalize),
            self.name,
            similarity=self._embedder.similarity,
            seconds=0.0,
            ranges=self._ranges,
        )

    def _find_space(self, dim: int, normalize: bool) -> str:  # noqa: FBT001  cached by position
        return self._embedder.info.space_fingerprint(dim, normalize_embeddings=normalize)

    def facts(self) -> dict[str, Any]:
        """Return the model's settings on which the answers depend, by name in words."""
        info = self._embedder.info
        ranges = None if self._ranges is None else fingerprint(ranges=self._ranges.tolist())
        return super().facts() | {
            "fingerprint of the model": info.run_fingerprint(info.resolve_prompt()),
            "--max-length": info.max_length,
            "set of prompts": dict(info.prompts),
            "--ranges": ranges,
        }


class RerankAnswers(Answers):
    """Answers requests for scores; the arguments are those of `Answers`."""

    def __init__(self, model: Reranker, settings: Settings, name: str | None = None) -> None:
        super().__init__("/v1/rerank", model, settings, name)
        self._reranker = model

    def _prepare(self, call: RerankCall) -> Prepared:
        return prepare_pairs(self._reranker, call, self.settings)

    def _answer(self, job: Job, results: list[Tensor]) -> Scores:
        return scores_of(self._reranker, results, job.prepared, round(job.computed), self.name)

    def facts(self) -> dict[str, Any]:
        """Return the model's settings on which the answers depend, by name in words."""
        info = self._reranker.info
        return super().facts() | {
            "fingerprint of the model": info.run_fingerprint(),
            "--max-length": info.max_length,
        }


@dataclass(slots=True)
class Pending:
    """A request, with what is needed to write its line of the output.

    Args:
        request: the request.
        hash: a hash that identifies the request in the output.
        answers: the object that answers requests to its path; None if the line is not a request.
        asked: its body; None if it cannot be answered.
        job: its texts; None if it cannot be answered.
        failure: the error of a request that cannot be answered; else None.
    """

    request: Request
    hash: str
    answers: Answers | None = None
    asked: Body | None = None
    job: Job | None = None
    failure: ServeError | None = None

    def problem(self) -> str:
        """Return in words why the request cannot be answered; call this only if it has no job."""
        if self.request.error is not None:
            return self.request.error[1]
        return f"line {self.request.line:,}: {self.failure}"

    def line(self) -> bytes:
        """Return the request's line of the output."""
        response, error = None, None
        if self.request.error is not None:
            code, message = self.request.error
            error = {"code": code, "message": message}
        else:
            status, body = self._response()
            response = {"status_code": status, "request_id": f"req_{self.hash}", "body": body}
        line = {
            "id": f"{ID}{self.hash}",
            "custom_id": self.request.custom_id,
            "response": response,
            "error": error,
        }
        return to_json(line) + b"\n"

    def _response(self) -> tuple[int, Any]:
        try:
            if self.failure is not None:
                raise self.failure
            assert self.answers is not None
            assert self.asked is not None
            assert self.job is not None
            body = self.answers.render(self.asked, self.job)
        except ServeError as error:
            return error.response(self.request.url)
        if "id" in body:  # a random number at the server
            body["id"] = f"rerank-{self.hash}"
        return 200, body


@dataclass(slots=True)
class PendingGroup:
    """The requests of a group.

    Args:
        pending: all requests of the group.
        done: how many of them, from the first on, have their lines in the output already.
    """

    pending: list[Pending]
    done: int = 0

    def compute(self) -> None:
        """Compute until every text has a result.

        Raises:
            DeviceError: the device has failed.
        """
        asked = [(each.answers, each.job) for each in self.pending]
        jobs = [(by, job) for by, job in asked if by is not None and job is not None]
        for by, job in jobs:
            while job.left:
                by.compute()
        for by, job in jobs:
            by.check(job)


def answered_lines(
    groups: Iterator[PendingGroup], answers: Iterable[Answers]
) -> Iterator[Iterator[bytes]]:
    """Yield, group by group, the lines that are not in the output yet; use a group's lines before the next group's.

    Args:
        groups: the groups. A group is read when the loop has taken all texts of the one before.
        answers: what answers each path.

    Raises:
        DeviceError: a device has failed; raised before the lines of the first group that lacks results.
        Exception: an exception of `groups`, raised again after the lines of all earlier groups.
    """
    read, failure = deque[PendingGroup](), list[Exception]()
    answers = list(answers)
    # This many groups have enough texts for every batch that may be started.
    most = 2 + max(each.model.loop.runner.depth for each in answers)

    def read_group(block: bool = True) -> bool:  # noqa: FBT001, FBT002  as queue.Queue has it
        """Read one more group and queue its texts, as `GroupQueue` asks for; return False at the end of the input."""
        if failure:
            raise failure[0]
        if not block and len(read) >= most:
            raise Empty
        try:
            group = next(groups, None)
        except Exception as error:  # a generator that has failed looks like one that has ended
            failure.append(error)
            raise
        if group is None:
            return False
        read.append(group)
        for each in answers:
            jobs = (one.job for one in group.pending if one.answers is each and one.job is not None)
            each.queue.add([_Text(job, place) for job in jobs for place in range(job.left)])
        return True

    for each in answers:
        each.begin(read_group)
    while read or read_group():
        group = read[0]
        group.compute()
        yield (each.line() for each in group.pending[group.done :])
        read.popleft()


def prepare(
    request: Request, name: str, answers: Mapping[str, Answers], done: Callable[[], object]
) -> Pending:
    """Check and tokenise a request.

    Args:
        request: the request.
        name: a hash that identifies the request.
        answers: what answers each path.
        done: called once every text has a result, if the request can be answered.
    """
    pending = Pending(request, name)
    if request.error is None:
        pending.answers = answers[request.url]
        try:
            pending.asked, pending.job = pending.answers.prepare(request.body, done)
        except ServeError as error:
            pending.failure = error
    return pending


def pending_groups(
    reader: RequestReader,
    results: ResultsFile,
    answers: Mapping[str, Answers],
    advance: Callable[[int], object],
) -> Iterator[PendingGroup]:
    """Read and prepare, group by group, the requests of the groups that are not complete in the output yet.

    Args:
        reader: reads the input.
        results: the output.
        answers: what answers each path.
        advance: called in the caller's thread, with the number of bytes of requests that need no more work.

    Raises:
        InputError: the input cannot be read, or is not the one that the output is from.
    """

    def unfinished() -> Iterator[tuple[RequestGroup, int]]:
        for group in reader.groups():
            done = results.find(group.ids())
            if done < len(group.requests):
                yield group, done
            else:
                advance(sum(each.size for each in group.requests))
        results.check_end()

    def work(given: tuple[RequestGroup, int]) -> PendingGroup:
        group, done = given
        named = zip(group.requests, group.ids(), strict=True)
        pending = [
            prepare(request, name, answers, partial(advance, request.size))
            for request, name in named
        ]
        return PendingGroup(pending, done)

    groups: Iterator[PendingGroup] = map(work, unfinished())
    if any(each.model.loop.runner.ahead for each in answers.values()):
        groups = map_ahead(work, unfinished(), at_once=lambda _: False)
    for group in groups:
        advance(sum(each.request.size for each in group.pending if each.job is None))
        yield group
