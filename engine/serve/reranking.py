"""The reranker of a server: its own queue and its own thread, beside those of the embedding model."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from lastword.reranker import Reranker
from lastword.serve.errors import ServeError, refuse_model
from lastword.serve.pairs import RerankCall, Scores, prepare_pairs, scores_of
from lastword.serve.settings import Settings
from lastword.serve.texts import Prepared
from lastword.serve.waiting import Job, WaitingTexts
from lastword.serve.worker import DeviceThread


class Reranking:
    """A reranker served beside an embedding model.

    Args:
        settings: the server's settings.
        load: opens the reranker; called in its thread.
        ready: called in its thread once pairs can be scored.
        failed: called in its thread if it ends by an error.
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
        self.device = DeviceThread(load, self.waiting, self._loaded, ready, failed)
        self._reranker: Reranker | None = None

    def _loaded(self, reranker: Reranker) -> None:
        self._reranker = reranker

    @property
    def model(self) -> Reranker:
        """The reranker; ServeError while it is not loaded."""
        if self._reranker is None or not self.device.ready:
            raise ServeError(503, "the reranker is being loaded", code="loading", retry_seconds=1.0)
        return self._reranker

    @property
    def name(self) -> str:
        """The name under which the reranker is served."""
        name = self.model.name
        return Path(name).name if Path(name).is_dir() else name

    def check_model(self, asked: str | None) -> None:
        """Raise ServeError unless the request asks for this reranker, or for none."""
        refuse_model(asked, self.name)

    def prepare(self, call: RerankCall) -> Prepared:
        """Check and tokenise the pairs of a request; called outside the event loop."""
        return prepare_pairs(self.model, call, self._settings)

    def answer(self, job: Job) -> Scores:
        """Gather a job's scores; called outside the event loop."""
        results = [each for each in job.results if isinstance(each, Tensor)]
        return scores_of(self.model, results, job.prepared, round(job.computed), self.name)
