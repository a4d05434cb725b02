"""What `GET /metrics` shows: the names that dashboards for text-embeddings-inference (`te_*`) know, and our own."""

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


class Metrics(Collector):
    """The counts of one server, its reranker's included; speed and last batch are those of the embedding model.

    Each has its own registry, so that several can be in one process.
    """

    def __init__(self, service: "Service") -> None:
        self._service = service
        self.registry = CollectorRegistry()
        self.requests: Counter[tuple[str, str]] = Counter()  # by path of the route and status
        self.texts = self.tokens = self.truncated = 0

        def histogram(name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, about, registry=self.registry, buckets=buckets)

        self.duration = histogram("te_request_duration", "seconds from a request to its answer")
        self.tokenization = histogram(
            "te_request_tokenization_duration", "seconds to prepare a request"
        )
        self.queue = histogram("te_request_queue_duration", "seconds that a request waited")
        self.inference = histogram("te_request_inference_duration", "seconds on the device")
        self.length = histogram("te_request_input_length", "tokens of a text", _TOKENS)
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Yield the counts of the moment; named as given, where the library would append `_total`."""
        by_status: Counter[tuple[str, str]] = Counter(self.requests)
        for name, wanted in (("te_request_count", ""), ("te_request_success", "2")):
            metric = Metric(name, "requests", "unknown")
            for (path, status), number in sorted(by_status.items()):
                if status.startswith(wanted):
                    metric.add_sample(name, {"path": path, "status": status}, number)
            yield metric
        service = self._service
        parts, device, report = service.parts, service.device, Report()
        for part in parts:
            report.add(part.device.report)
        shared = self.tokens - report.tokens_computed - report.tokens_cached
        age = max(part.waiting.age() for part in parts)
        values: dict[str, tuple[str, float]] = {
            "te_embed_count": ("texts asked for", self.texts),
            "te_queue_size": ("texts that wait", sum(p.waiting.texts for p in parts)),
            "te_batch_next_tokens": ("tokens of the last batch", device.batch_tokens),
            "lastword_tokens_requested": ("tokens before sharing", self.tokens),
            "lastword_tokens_computed": ("tokens computed", report.tokens_computed),
            "lastword_tokens_shared": ("tokens saved by sharing", max(0, shared)),
            "lastword_tokens_cached": ("tokens of kept prompts", report.tokens_cached),
            "lastword_texts_truncated": ("texts that were cut", self.truncated),
            "lastword_batches": ("batches computed", report.batches),
            "lastword_device_seconds": ("seconds that batches took", report.seconds),
            "lastword_batch_fill": ("last batch's share of a full one", _fill(service)),
            "lastword_tokens_per_second": ("requested tokens per second", device.tokens_per_second),
            "lastword_queue_tokens": ("tokens that wait", sum(p.waiting.tokens for p in parts)),
            "lastword_queue_age_seconds": ("how long the first text has waited", age),
            "lastword_requests_in_hand": ("requests whose bodies were read", service.in_hand),
        }
        for name, (about, value) in values.items():
            metric = Metric(name, about, "unknown")
            metric.add_sample(name, {}, value)
            yield metric

    def text(self) -> bytes:
        """Return the page that Prometheus reads."""
        return generate_latest(self.registry)


def _fill(service: "Service") -> float:
    return service.device.batch_tokens / max(1, service.waiting.group_tokens)
