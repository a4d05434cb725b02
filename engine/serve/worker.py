"""The thread of the device: loads the model, warms it up, then runs the one loop of the engine on the queue."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from lastword.embedder import Embedder
from lastword.report import Report
from lastword.reranker import Reranker
from lastword.serve.waiting import Waiting, WaitingTexts

# How much one batch changes the average speed.
_WEIGHT = 0.2


Model = TypeVar("Model", Embedder, Reranker)


class DeviceThread(Generic[Model]):
    """Computes what `waiting` gives, in one thread.

    Args:
        load: opens the model; called in the thread.
        waiting: the queue.
        loaded: called in the thread with the model, before it is warm.
        warm: called in the thread once texts are computed.
        failed: called in the thread if it ends by an error.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        waiting: WaitingTexts,
        loaded: Callable[[Model], None],
        warm: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._load: Callable[[], Model] = load
        self._loaded: Callable[[Model], None] = loaded
        self.waiting, self._warm, self._failed = waiting, warm, failed
        self.report = Report()
        self.tokens_per_second = 0.0  # requested tokens, of late; 0 before the first batch
        self.batch_tokens = 0  # of the last batch
        self.ready = False
        self.thread = threading.Thread(target=self._run, name="lastword-serve-device", daemon=True)

    def start(self) -> None:
        """Start loading the model."""
        self.thread.start()

    def _run(self) -> None:
        try:
            model = self._load()
            self._loaded(model)
            model.warm_up()
            self.waiting.group_tokens = model.loop.budget.limit
            self.ready = True
            self._warm()
            self._compute(model)
            model.close()
        except Exception as error:  # noqa: BLE001  whatever ends the thread, requests must not wait for it
            self.ready = False
            self.waiting.fail(error)
            self._failed(error)

    def _compute(self, model: Embedder | Reranker) -> None:
        """Give each result to those who wait, with its share of the tokens that its batch computed."""
        requested = computed = batches = 0
        seconds, share = 0.0, 0.0
        report = self.report
        results = model.results if isinstance(model, Reranker) else model.loop.results
        for tag, result in results(self.waiting, report):
            assert isinstance(tag, Waiting)
            if report.batches != batches:  # the first result of a batch
                asked, took = report.tokens_requested - requested, report.seconds - seconds
                share = (report.tokens_computed - computed) / max(1, asked)
                self._measure(asked, took)
                requested, computed = report.tokens_requested, report.tokens_computed
                batches, seconds = report.batches, report.seconds
            self.waiting.deliver(tag, result, share * tag.tokens)

    def _measure(self, tokens: int, seconds: float) -> None:
        if seconds <= 0:
            return
        speed, before = tokens / seconds, self.tokens_per_second
        self.tokens_per_second = speed if before == 0 else before + _WEIGHT * (speed - before)
        self.batch_tokens = tokens

    def stop(self, seconds: float) -> None:
        """Let the thread finish what waits, and wait for it."""
        self.waiting.close()
        if self.thread.ident is not None:  # else it was never started
            self.thread.join(seconds)
