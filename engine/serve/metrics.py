"""The metrics of `GET /metrics`: those of text-embeddings-inference (`te_*`), for its dashboards, and our own."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from lastword.report import Report

if TYPE_CHECKING:
    from lastword.serve.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (8, 32, 128, 512, 2048, 8192, 32_768, 131_072)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# Why a request failed, by HTTP status, in TEI's words if it has any. Any other 4xx is "validation", 5xx "inference".
_FAILURES = {"401": "unauthorized", "429": "overloaded", "499": "dropped", "503": "unavailable"}


class Metrics(Collector):
    """The metrics of one server.

    The counts cover the reranker too. As in TEI, texts to embed are counted in `te_embed_*`, and the reranker's pairs
    in `te_predict_*`. Speed and last batch refer to the embedding model, if there is one. Each server has its own
    registry, so that one process can hold several servers.
    """

    def __init__(self, service: "Service") -> None:
        self._service = service
        self.registry = CollectorRegistry()
        self.requests: Counter[tuple[str, str]] = Counter()  # by the route's path and the status
        # Texts ("embed") and pairs ("predict") that entered the queue, and those that got a result.
        self.asked, self.done = Counter[str](), Counter[str]()
        self.tokens = self.truncated = 0

        def histogram(name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, about, registry=self.registry, buckets=buckets)

        self.duration = histogram(
            "te_request_duration", "seconds from a request for vectors or scores to its answer"
        )
        self.tokenization = histogram(
            "te_request_tokenization_duration", "seconds to prepare a request"
        )
        self.queue = histogram(
            "te_request_queue_duration", "seconds that a request waited in the queue"
        )
        self.inference = histogram("te_request_inference_duration", "seconds on the device")
        self.length = histogram("te_request_input_length", "tokens of a text", _TOKENS)
        self.batch_size = histogram("te_batch_next_size", "texts of a batch", _TEXTS)
        self.batch_tokens = histogram(
            "te_batch_next_tokens", "requested tokens of a batch", _TOKENS
        )
        self.registry.register(self)

    def add_batch(self, texts: int, tokens: int) -> None:
        """Count a batch; called in the thread of a model."""
        self.batch_size.observe(texts)
        self.batch_tokens.observe(tokens)

    def collect(self) -> Iterable[Metric]:
        """Yield the current values, with the type `unknown`, since a counter's name would get `_total` at its end."""
        yield from self._collect_requests()
        service = self._service
        backends, device, report = service.backends, service.device, Report()
        for backend in backends:
            report.add(backend.device.report)
        shared = self.tokens - report.tokens_computed - report.tokens_cached
        age = max(backend.waiting.age() for backend in backends)
        values: dict[str, tuple[str, float]] = {
            "te_embed_count": ("texts requested", self.asked["embed"]),
            "te_embed_success": ("texts with a vector", self.done["embed"]),
            "te_predict_count": ("pairs requested", self.asked["predict"]),
            "te_predict_success": ("pairs with a score", self.done["predict"]),
            "te_queue_size": ("texts in the queue", sum(p.waiting.texts for p in backends)),
            "lastword_tokens_requested": ("tokens requested, before sharing", self.tokens),
            "lastword_tokens_computed": ("tokens computed", report.tokens_computed),
            "lastword_tokens_shared": (
                "tokens not computed because texts share them",
                max(0, shared),
            ),
            "lastword_tokens_cached": (
                "tokens of prompts whose keys and values were kept",
                report.tokens_cached,
            ),
            "lastword_texts_truncated": ("texts that were cut", self.truncated),
            "lastword_batches": ("batches computed", report.batches),
            "lastword_device_seconds": ("seconds that batches took", report.seconds),
            "lastword_batch_fill": ("fullness of the last batch, from 0 to 1", _fill(service)),
            "lastword_tokens_per_second": ("requested tokens per second", device.tokens_per_second),
            "lastword_queue_tokens": (
                "tokens in the queue",
                sum(p.waiting.tokens for p in backends),
            ),
            "lastword_queue_age_seconds": ("seconds the oldest text has waited", age),
            "lastword_requests_in_hand": ("requests read and not yet answered", service.in_hand),
        }
        for name, (about, value) in values.items():
            metric = Metric(name, about, "unknown")
            metric.add_sample(name, {}, value)
            yield metric

    def _collect_requests(self) -> Iterable[Metric]:
        """Yield the counts of requests by path and status: all, those that succeeded, those that failed."""
        counted = sorted(self.requests.items())
        every, good, failed = (
            Metric(f"te_request_{name}", "requests", "unknown")
            for name in ("count", "success", "failure")
        )
        for (path, status), number in counted:
            labels = {"path": path, "status": status}
            every.add_sample(every.name, labels, number)
            if status.startswith("2"):
                good.add_sample(good.name, labels, number)
            else:
                word = "validation" if status.startswith("4") else "inference"
                failed.add_sample(
                    failed.name, labels | {"err": _FAILURES.get(status, word)}, number
                )
        yield from (every, good, failed)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _fill(service: "Service") -> float:
    return service.device.batch_tokens / max(1, service.waiting.group_tokens)
