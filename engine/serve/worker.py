"""The device's thread: it loads a model, warms it up, then runs the engine's loop on the queue."""

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch import Tensor

from lastword.embedder import Embedder
from lastword.report import Report
from lastword.reranker import Reranker
from lastword.runtime.results import ItemQueue
from lastword.serve.waiting import WaitingText, WaitingTexts

# Weight of the last batch in the moving average of the speed.
_SPEED_WEIGHT = 0.2


Model = TypeVar("Model", bound=Embedder | Reranker)


class DeviceThread(Generic[Model]):
    """Computes the texts of a queue with one model, in one thread. All callables are called in that thread.

    Args:
        load: opens the model.
        waiting: the queue.
        loaded: called with the model, before it is warmed up.
        warm: called once the model is warm, before the first text.
        failed: called with the error if an error ends the thread.
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
        self._on_loaded: Callable[[Model], None] = loaded
        self.waiting, self._on_warm, self._on_failed = waiting, warm, failed
        self.report = Report()
        self.tokens_per_second = 0.0  # requested tokens, moving average; 0 before the first batch
        # The same for batches that were at least half full; smaller ones say little about how soon a queue is done.
        self.full_speed = 0.0
        self.batch_tokens = 0  # requested tokens of the last batch
        # Called with the number of texts and of requested tokens of each batch.
        self.on_batch: Callable[[int, int], object] = lambda _texts, _tokens: None
        self.ready = False
        self.thread = threading.Thread(target=self._run, name="lastword-serve-device", daemon=True)

    def start(self) -> None:
        """Start the thread, which first loads the model."""
        self.thread.start()

    def _run(self) -> None:
        try:
            model = self._load()
            self._on_loaded(model)
            model.warm_up()
            self.waiting.group_tokens = model.loop.budget.limit
            self.ready = True
            self._on_warm()
            self._compute(model)
            model.close()
        except Exception as error:  # noqa: BLE001  whatever it is, requests must not wait for a dead thread
            self.ready = False
            self.waiting.fail(error)
            self._on_failed(error)

    def _compute(self, model: Embedder | Reranker) -> None:
        """Deliver each text's result, with the text's share of the tokens that its batch computed."""
        results = results_with_shares(model, self.waiting, self.report, self._on_batch)
        for tag, result, share in results:
            assert isinstance(tag, WaitingText)
            self.waiting.deliver(tag, result, share * tag.tokens)

    def _on_batch(self, texts: int, tokens: int, seconds: float) -> None:
        self._measure(tokens, seconds)
        self.on_batch(texts, tokens)

    def _measure(self, tokens: int, seconds: float) -> None:
        if seconds <= 0:
            return
        speed = tokens / seconds
        self.tokens_per_second = _moving_average(self.tokens_per_second, speed)
        if 2 * tokens >= self.waiting.group_tokens:
            self.full_speed = _moving_average(self.full_speed, speed)
        self.batch_tokens = tokens

    def stop(self, seconds: float) -> None:
        """Close the queue, and wait up to `seconds` for the thread to finish what is queued."""
        self.waiting.close()
        if self.thread.ident is not None:  # None: it was never started
            self.thread.join(seconds)


def results_with_shares(
    model: Embedder | Reranker,
    queue: ItemQueue,
    report: Report,
    on_batch: Callable[[int, int, float], object] = lambda _texts, _tokens, _seconds: None,
) -> Iterator[tuple[object, Tensor | Exception, float]]:
    """Yield (tag, tensor or error, share) for each item from a queue, as `Loop.results` does.

    The share is the number of tokens that the item's batch computed, per token requested; it is less than 1 if texts of
    the batch share a beginning. So a text's part of the tokens computed is in proportion to its length.

    Args:
        model: computes the results.
        queue: gives the items.
        report: receives the counts.
        on_batch: called with the number of texts, of requested tokens and of seconds of each batch.
    """
    texts = requested = computed = batches = 0
    seconds, share = 0.0, 0.0
    results = model.results if isinstance(model, Reranker) else model.loop.results
    for tag, result in results(queue, report):
        if report.batches != batches:  # the first result of a batch
            asked = report.tokens_requested - requested
            share = (report.tokens_computed - computed) / max(1, asked)
            on_batch(report.texts - texts, asked, report.seconds - seconds)
            requested, computed = report.tokens_requested, report.tokens_computed
            texts, batches, seconds = report.texts, report.batches, report.seconds
        yield tag, result, share


def _moving_average(average: float, value: float) -> float:
    """Return a moving average with one more value; an average of 0 means that this value is the first."""
    return value if average == 0 else average + _SPEED_WEIGHT * (value - average)
