"""The server's reranker. It has a queue and a thread of its own, apart from those of the embedding model."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from lastword.reranker import Reranker
from lastword.serve.errors import ServeError, check_model_name
from lastword.serve.pairs import RerankCall, Scores, prepare_pairs, scores_of
from lastword.serve.settings import Settings
from lastword.serve.texts import Prepared
from lastword.serve.waiting import Job, WaitingTexts
from lastword.serve.worker import DeviceThread


class Reranking:
    """A reranker served beside an embedding model.

    Args:
        settings: the server's settings.
        load: opens the reranker. It, `ready` and `failed` are called in the reranker's thread.
        ready: called once pairs can be scored.
        failed: called with the error if the thread ends by one.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Reranker],
        ready: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._settings = settings
        self.waiting = WaitingTexts(settings.limits.interactive_tokens)
        self.device = DeviceThread(load, self.waiting, self._on_loaded, ready, failed)
        self._reranker: Reranker | None = None

    def _on_loaded(self, reranker: Reranker) -> None:
        self._reranker = reranker

    @property
    def model(self) -> Reranker:
        """The reranker. ServeError is raised until it is loaded and warm, and after it has failed."""
        if self._reranker is None or not self.device.ready:
            raise ServeError(503, "the reranker is being loaded", code="loading", retry_seconds=1.0)
        return self._reranker

    @property
    def name(self) -> str:
        """The name that requests and answers use for the reranker."""
        name = self.model.name
        return Path(name).name if Path(name).is_dir() else name

    def check_model(self, asked: str | None) -> None:
        """Raise ServeError if a request names a model other than the reranker."""
        check_model_name(asked, self.name)

    def prepare(self, call: RerankCall) -> Prepared:
        """Check and tokenise the pairs of a request; call it outside the event loop."""
        return prepare_pairs(self.model, call, self._settings)

    def answer(self, job: Job) -> Scores:
        """Collect the scores of a finished job; call it outside the event loop."""
        results = [each for each in job.results if isinstance(each, Tensor)]
        return scores_of(self.model, results, job.prepared, round(job.computed), self.name)
