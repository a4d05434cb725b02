"""The server's state, and the way of a request: parse and tokenise ─► queue ─► device ─► answer.

The event loop only moves bytes and futures: parsing, tokenising and writing of answers run in two small pools of
threads, the device has its own (`worker.py`).
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from time import monotonic, time
from typing import TypeVar

from torch import Tensor

from lastword.embedder import Embedder
from lastword.reranker import Reranker
from lastword.serve.answers import Answer, stack
from lastword.serve.errors import ServeError, bad_request, device_error, refuse_model
from lastword.serve.http.keys import Keys
from lastword.serve.metrics import Metrics
from lastword.serve.reranking import Reranking
from lastword.serve.settings import Settings
from lastword.serve.texts import Call, Prepared, Preparer
from lastword.serve.waiting import Job, WaitingTexts
from lastword.serve.worker import DeviceThread

# The name of the built-in model; tools that look for embedding models in a list look for "embed" in the name.
BUILTIN_NAME = "lastword-builtin-embedding"
T = TypeVar("T")


class Service:
    """One model, and a reranker if there is one, served by one process.

    Args:
        settings: the server's settings.
        load: opens the model.
        ranges: [2, dim], for int8 and uint8 vectors.
        load_reranker: opens a reranker, once the model is warm; None for a server without one.

    Raises:
        InputError: the file of keys cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Embedder],
        ranges: Tensor | None = None,
        load_reranker: Callable[[], Reranker] | None = None,
    ) -> None:
        self.settings, self.limits = settings, settings.limits
        self.keys = Keys(settings.key_file)
        self.waiting = WaitingTexts(self.limits.interactive_tokens)
        self.device = DeviceThread(load, self.waiting, self._loaded, self._warm, self._failed)
        self.reranking: Reranking | None = None
        if load_reranker is not None:
            self.reranking = Reranking(settings, load_reranker, self._reranker_warm, self._failed)
        self.embedder: Embedder | None = None
        self.preparer: Preparer | None = None
        self.error: Exception | None = None  # what ended the device's thread
        self.on_ready: Callable[[], object] = lambda: (
            None
        )  # as `on_failure`, called in the device's thread
        self.on_failure: Callable[[], object] = lambda: None
        self.draining = False
        self.connected = 0  # requests being read, computed or answered
        self.in_hand = 0  # of these, those whose bodies have been read
        self.created = int(time())
        self.metrics = Metrics(self)
        self._ranges = ranges
        self._prepare = ThreadPoolExecutor(2, "lastword-serve-prepare")
        self._answer = ThreadPoolExecutor(2, "lastword-serve-answer")
        self._space = lru_cache(256)(self._find_space)

    # Called by the thread of the device.

    def _loaded(self, embedder: Embedder) -> None:
        embedder.info.space_fingerprint()  # reads from the files once
        self.preparer, self.embedder = Preparer(embedder, self.settings), embedder

    def _warm(self) -> None:
        if self.reranking is None:
            self.on_ready()
        elif not self.draining:  # one after the other: loading needs memory
            self.reranking.device.start()

    def _reranker_warm(self) -> None:
        self.on_ready()

    def _failed(self, error: Exception) -> None:
        self.error = error
        self.on_failure()

    # What is told about the server.

    @property
    def model(self) -> Embedder:
        """The model; ServeError while it is not loaded."""
        if self.embedder is None or not self.device.ready:
            raise ServeError(503, "the model is being loaded", code="loading", retry_seconds=1.0)
        return self.embedder

    @property
    def parts(self) -> "tuple[Service | Reranking, ...]":
        """What has a model, a queue and a thread: this one and, if there is a reranker, its own."""
        return (self,) if self.reranking is None else (self, self.reranking)

    def part(self, path: str, *, reranks: bool) -> "Service | Reranking":
        """Return what computes the answers of a path; ServeError if it is the reranker and there is none."""
        if not reranks:
            return self
        if self.reranking is None:
            said = f"{path}: the model is no reranker; start the server with --reranker, or use /similarity."
            raise bad_request(said, code="not_supported")
        return self.reranking

    @property
    def name(self) -> str:
        """The name under which the model is served."""
        if self.settings.model_name is not None:
            return self.settings.model_name
        name = self.model.name
        if name == "built-in":
            return BUILTIN_NAME
        return Path(name).name if Path(name).is_dir() else name

    def check_model(self, asked: str | None) -> None:
        """Raise ServeError unless the request asks for the model that is served, or for none."""
        refuse_model(asked, self.name)

    def check_ready(self) -> None:
        """Raise ServeError while a model is loaded, after it has failed, and while the server ends."""
        for part in self.parts:
            _ = part.model
        if self.draining:
            raise ServeError(503, "the server is stopping", code="stopping", retry_seconds=2.0)

    # The way of a request.

    def check_open(self, part: "Service | Reranking | None" = None) -> None:
        """Raise ServeError while the server starts, ends or has too much to do.

        Args:
            part: whose queue the request is for; None for that of the embedding model.
        """
        self.check_ready()
        part = part or self
        limits, waiting = self.limits, part.waiting.tokens
        speed = part.device.tokens_per_second
        seconds = waiting / speed if speed else 0.0
        if (
            self.in_hand >= limits.max_requests
            or waiting >= limits.max_queued_tokens
            or seconds > limits.max_queue_seconds
        ):
            raise ServeError(
                429, "the server is busy", code="overloaded", retry_seconds=seconds or 1.0
            )

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Count a request as one in hand during the `with` block."""
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1

    async def in_prepare(self, work: Callable[[], T]) -> T:
        """Parse or tokenise outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._prepare, work)

    async def in_answer(self, work: Callable[[], T]) -> T:
        """Write an answer outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._answer, work)

    def prepare(self, call: Call) -> Prepared:
        """Check and tokenise the texts of a request; called outside the event loop."""
        _ = self.model
        assert self.preparer is not None
        return self.preparer.prepare(call)

    async def compute(
        self, owner: str, prepared: Prepared, part: "Service | Reranking | None" = None
    ) -> Job:
        """Queue the texts, and wait for their results; if this is cancelled, they leave the queue.

        Args:
            owner: the client, for fairness.
            prepared: the texts or pairs.
            part: whose queue they are for; None for that of the embedding model.

        Raises:
            ServeError: a text could not be computed, or not in time.
        """
        loop, waiting = asyncio.get_running_loop(), (part or self).waiting
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        job = Job(owner, prepared, lambda: loop.call_soon_threadsafe(finish))
        try:
            if not waiting.submit(job):
                raise ServeError(503, "the server is stopping", code="stopping", retry_seconds=2.0)
            async with asyncio.timeout(self.limits.request_seconds):
                await done
        except TimeoutError:
            said = f"not computed within {self.limits.request_seconds} s"
            raise ServeError(503, said, code="timeout", retry_seconds=5.0) from None
        finally:
            waiting.cancel(job)
        self._measure(job)
        for each in job.results:
            if isinstance(each, Exception):
                raise device_error(each)
        return job

    def _measure(self, job: Job) -> None:
        """Count a job that has its results."""
        now, started, metrics = monotonic(), job.started or job.began, self.metrics
        metrics.queue.observe(started - job.began)
        metrics.inference.observe(now - started)
        metrics.texts += len(job.results)
        metrics.tokens += job.prepared.tokens
        metrics.truncated += sum(job.prepared.cut)
        for ids in job.prepared.ids:
            metrics.length.observe(len(ids))

    def answer(self, job: Job) -> Answer:
        """Gather a job's vectors; called outside the event loop."""
        wanted = job.prepared.format
        vectors = stack([each for each in job.results if isinstance(each, Tensor)])
        space = self._space(wanted.dim, wanted.normalize)
        return Answer(
            vectors,
            job.prepared,
            round(job.computed),
            space,
            self.name,
            similarity=self.model.similarity,
            seconds=monotonic() - job.began,
            ranges=self._ranges,
        )

    def _find_space(self, dim: int, normalize: bool) -> str:  # noqa: FBT001  of a cache
        return self.model.info.space_fingerprint(dim, normalize_embeddings=normalize)

    def close(self, seconds: float) -> None:
        """End the threads; the devices are given so long to finish."""
        end = monotonic() + seconds
        for part in self.parts:
            part.waiting.close()
        for part in self.parts:
            part.device.stop(max(0.0, end - monotonic()))
        self._prepare.shutdown(wait=False, cancel_futures=True)
        self._answer.shutdown(wait=False, cancel_futures=True)
