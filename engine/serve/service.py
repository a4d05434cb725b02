"""The server's state, and the path of a request: parse and tokenise ─► queue ─► device ─► answer.

The event loop moves bytes and futures, and handles short requests itself (`http/app.py`). Longer ones are parsed and
tokenised in one small thread pool, long answers are written in another, and each model computes in a thread of its own
(`worker.py`).
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from time import monotonic, time
from typing import TypeVar

from torch import Tensor

from lastword.embedder import Embedder
from lastword.reranker import Reranker
from lastword.serve.answers import Answer, stack
from lastword.serve.errors import ServeError, bad_request, check_model_name, device_error
from lastword.serve.finished import Finished
from lastword.serve.http.keys import Keys
from lastword.serve.metrics import Metrics
from lastword.serve.reranking import Reranking
from lastword.serve.settings import Settings, served_name
from lastword.serve.texts import EmbedCall, Prepared, Preparer
from lastword.serve.waiting import Job, WaitingTexts
from lastword.serve.worker import DeviceThread

# Why a server with a reranker alone refuses the other routes.
ONLY_RERANKS = (
    "this server has only a reranker, which scores documents at /rerank, /v1/rerank, /v2/rerank and /score; "
    "for vectors, start a server with an embedding model."
)
T = TypeVar("T")
Model = TypeVar("Model", bound=Embedder | Reranker)


class Service:
    """One process that serves an embedding model, a reranker, or both.

    Args:
        settings: the server's settings.
        load: opens the model; without `load_reranker`, it may be a reranker, which is then served alone.
        ranges: [2, dim], lowest and highest value of each dimension, for int8 and uint8; None if there are none.
        load_reranker: opens the reranker; called once the embedding model is warm. None for no reranker.

    Raises:
        InputError: the file of keys cannot be read, or holds no key.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Embedder | Reranker],
        ranges: Tensor | None = None,
        load_reranker: Callable[[], Reranker] | None = None,
    ) -> None:
        self.settings, self.limits = settings, settings.limits
        self.keys = Keys(settings.key_file)
        self.device = self._make_thread(load, self._on_loaded, self._on_warm)
        self.waiting = self.device.waiting
        self.reranking: Reranking | None = None
        if load_reranker is not None:
            thread = self._make_thread(
                load_reranker, self._on_reranker_loaded, self._on_second_warm
            )
            self.reranking = Reranking(settings, thread)
        self.embedder: Embedder | None = None
        self.preparer: Preparer | None = None
        self.error: Exception | None = None  # what ended a model's thread
        # `on_ready` and `on_failure` are called in the thread of a model.
        self.on_ready: Callable[[], object] = lambda: None
        self.on_failure: Callable[[], object] = lambda: None
        self.draining = False
        self.connected = 0  # requests being received, computed or answered
        self.in_hand = 0  # of these, those whose bodies have been read
        self.created = int(time())
        self.metrics = Metrics(self)
        for backend in self.backends:
            backend.device.on_batch = self.metrics.add_batch
        self._ranges = ranges
        self._prepare_pool = ThreadPoolExecutor(2, "lastword-serve-prepare")
        self._answer_pool = ThreadPoolExecutor(2, "lastword-serve-answer")
        self._finished = Finished()
        self._space = lru_cache(256)(self._find_space)

    def _make_thread(
        self, load: Callable[[], Model], loaded: Callable[[Model], None], warm: Callable[[], None]
    ) -> DeviceThread[Model]:
        """Make the thread of a model, and its queue."""
        waiting = WaitingTexts(self.limits.interactive_tokens)
        return DeviceThread(load, waiting, loaded, warm, self._on_failed)

    # Called in the models' threads.

    def _on_loaded(self, model: Embedder | Reranker) -> None:
        if isinstance(model, Reranker):
            alone = Reranking(self.settings, self.device, self.settings.model_name)
            alone.hold(model)
            self.reranking = alone
        else:
            model.info.space_fingerprint()  # reads the files now, and not during a request
            self.preparer, self.embedder = Preparer(model, self.settings), model

    def _on_reranker_loaded(self, reranker: Reranker) -> None:
        assert self.reranking is not None
        self.reranking.hold(reranker)

    def _on_warm(self) -> None:
        if self.reranking is None or self.only_reranks:
            self.on_ready()
        elif not self.draining:  # not earlier: two models loading at once would need more memory
            self.reranking.device.start()

    def _on_second_warm(self) -> None:
        self.on_ready()

    def _on_failed(self, error: Exception) -> None:
        self.error = error
        self.on_failure()

    # The state of the server.

    @property
    def model(self) -> Embedder:
        """The embedding model. ServeError is raised until it is loaded and warm, and after it has failed."""
        if self.embedder is None or not self.device.ready:
            raise ServeError(503, "the model is being loaded", code="loading", retry_seconds=1.0)
        return self.embedder

    @property
    def only_reranks(self) -> bool:
        """Whether a reranker is served alone; False until the model is loaded."""
        return self.reranking is not None and self.reranking.device is self.device

    @property
    def backends(self) -> "tuple[Service | Reranking, ...]":
        """The objects with a model, a queue and a thread: this service for the embedding model, then the reranker."""
        if self.reranking is None:
            return (self,)
        return (self.reranking,) if self.only_reranks else (self, self.reranking)

    def backend(self, path: str, *, reranks: bool) -> "Service | Reranking":
        """Return the object that computes the answers of a path: this service or its reranker.

        Raises:
            ServeError: the path needs a kind of model that is not served, or the server is not ready.
        """
        if not self.device.ready:
            self.check_ready()  # only a loaded model tells which kind is served
        if not reranks:
            if self.only_reranks:
                raise bad_request(f"{path}: {ONLY_RERANKS}", code="not_supported")
            return self
        if self.reranking is None:
            said = f"{path}: this server has no reranker; start it with --reranker, or use /similarity."
            raise bad_request(said, code="not_supported")
        return self.reranking

    @property
    def name(self) -> str:
        """The name that requests and answers use for the embedding model."""
        if self.settings.model_name is not None:
            return self.settings.model_name
        return served_name(self.model.name)

    def check_model(self, asked: str | None) -> None:
        """Raise ServeError if a request names a model other than the embedding model."""
        check_model_name(asked, self.name)

    def check_ready(self) -> None:
        """Raise ServeError while a model is loading, after one has failed, and while the server is stopping."""
        for backend in self.backends:
            _ = backend.model
        if self.draining:
            raise ServeError(503, "the server is stopping", code="stopping", retry_seconds=2.0)

    # The path of a request.

    def check_open(self, backend: "Service | Reranking | None" = None) -> None:
        """Raise ServeError while the server cannot take a request: it is starting, stopping or overloaded.

        Args:
            backend: this service or its reranker, whose queue the request would enter; None for this service.
        """
        self.check_ready()
        backend = backend or self
        limits, waiting = self.limits, backend.waiting.tokens
        speed = backend.device.full_speed
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
    def count_in_hand(self) -> Iterator[None]:
        """Count a request in `in_hand` during the `with` block."""
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1

    async def run_in_prepare_pool(self, work: Callable[[], T]) -> T:
        """Run `work`, which parses or tokenises, outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._prepare_pool, work)

    async def run_in_answer_pool(self, work: Callable[[], T]) -> T:
        """Run `work`, which writes an answer, outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._answer_pool, work)

    def prepare(self, call: EmbedCall) -> Prepared:
        """Check and tokenise the texts of a request; if it is long, call this outside the event loop."""
        _ = self.model
        assert self.preparer is not None
        return self.preparer.prepare(call)

    async def compute(
        self, owner: str, prepared: Prepared, backend: "Service | Reranking | None" = None
    ) -> Job:
        """Queue the texts and wait for their results. If the wait is cancelled, the texts leave the queue.

        Args:
            owner: the client; clients take turns.
            prepared: the texts or pairs.
            backend: this service or its reranker, whose queue is used; None for this service.

        Returns:
            The job, with a tensor as the result of each text.

        Raises:
            ServeError: a text could not be embedded or scored, or not in time, or the server is stopping.
        """
        loop, waiting = asyncio.get_running_loop(), (backend or self).waiting
        kind = "embed" if backend is None or backend is self else "predict"
        done: asyncio.Future[None] = loop.create_future()
        job = Job(owner, prepared, lambda: self._finished.add(done))
        try:
            if not waiting.submit(job):
                raise ServeError(503, "the server is stopping", code="stopping", retry_seconds=2.0)
            self.metrics.asked[kind] += len(job.results)
            async with asyncio.timeout(self.limits.request_seconds):
                await done
        except TimeoutError:
            said = f"not computed within {self.limits.request_seconds} s"
            raise ServeError(503, said, code="timeout", retry_seconds=5.0) from None
        finally:
            waiting.cancel(job)
        self._measure(job, kind)
        for each in job.results:
            if isinstance(each, Exception):
                raise device_error(each)
        return job

    def _measure(self, job: Job, kind: str) -> None:
        """Add a finished job to the metrics."""
        now, started, metrics = monotonic(), job.started or job.began, self.metrics
        metrics.queue.observe(started - job.began)
        metrics.inference.observe(now - started)
        metrics.done[kind] += sum(isinstance(each, Tensor) for each in job.results)
        metrics.tokens += job.prepared.tokens
        metrics.truncated += sum(job.prepared.cut)
        for ids in job.prepared.ids:
            metrics.length.observe(len(ids))

    def answer(self, job: Job) -> Answer:
        """Collect the vectors of a finished job; if there are many, call this outside the event loop."""
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

    def _find_space(self, dim: int, normalize: bool) -> str:  # noqa: FBT001  cached by position
        return self.model.info.space_fingerprint(dim, normalize_embeddings=normalize)

    def close(self, seconds: float) -> None:
        """Stop the threads; those of the models get `seconds` in all to finish what is queued."""
        end = monotonic() + seconds
        for backend in self.backends:
            backend.waiting.close()
        for backend in self.backends:
            backend.device.stop(max(0.0, end - monotonic()))
        self._prepare_pool.shutdown(wait=False, cancel_futures=True)
        self._answer_pool.shutdown(wait=False, cancel_futures=True)
