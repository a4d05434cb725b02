"""The server's reranker. Beside an embedding model it has a queue and a thread of its own."""

from typing import Any

from torch import Tensor

from lastword.reranker import Reranker
from lastword.serve.errors import ServeError, check_model_name
from lastword.serve.pairs import RerankCall, Scores, prepare_pairs, scores_of
from lastword.serve.settings import Settings, served_name
from lastword.serve.texts import Prepared
from lastword.serve.waiting import Job, WaitingTexts
from lastword.serve.worker import DeviceThread


class Reranking:
    """A reranker served alongside an embedding model, or alone.

    Args:
        settings: the server's settings.
        device: the thread that computes the scores.
        name: the name that requests and answers use for the reranker; None for its own name.
    """

    def __init__(
        self, settings: Settings, device: DeviceThread[Any], name: str | None = None
    ) -> None:
        self._settings, self.device, self._name = settings, device, name
        self.waiting: WaitingTexts = device.waiting
        self._reranker: Reranker | None = None

    def hold(self, reranker: Reranker) -> None:
        """Take the reranker, once it is loaded; called in the device's thread."""
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
        if self._name is not None:
            return self._name
        return served_name(self.model.name)

    def check_model(self, asked: str | None) -> None:
        """Raise ServeError if a request names a model other than the reranker."""
        check_model_name(asked, self.name)

    def prepare(self, call: RerankCall) -> Prepared:
        """Check and tokenise the pairs of a request; if it is long, call this outside the event loop."""
        return prepare_pairs(self.model, call, self._settings)

    def answer(self, job: Job) -> Scores:
        """Collect the scores of a finished job; if there are many, call this outside the event loop."""
        results = [each for each in job.results if isinstance(each, Tensor)]
        return scores_of(self.model, results, job.prepared, round(job.computed), self.name)
