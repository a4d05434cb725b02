"""What all scenarios use: the texts, the model, the server's options, and the rows of results."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lastword import Embedder
from lastword.bench.models.workloads import workloads
from lastword.bench.serve.load import Load
from lastword.bench.serve.material import KINDS, Material
from lastword.bench.serve.processes import GeneratorProcess, ServerProcess, serving

# Numbers of documents and of queries: by default, and with --quick.
COUNTS, QUICK_COUNTS = (1024, 4096), (320, 512)
# Largest difference allowed between the numbers of `encode`'s and the server's vectors: in fp32, and otherwise.
FP32_TOLERANCE, TOLERANCE = 1e-5, 2e-2


@dataclass(frozen=True, slots=True)
class Row:
    """One result of a scenario.

    Args:
        scenario: the scenario's name.
        measured: the result in words.
        target: the target in words.
        met: whether the target is met.
        right: whether every answer was right, no request was lost and nothing leaked; False makes the exit status 1.
        figures: the result as values for the JSON file.
    """

    scenario: str
    measured: str
    target: str
    met: bool
    right: bool = True
    figures: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the row as printed."""
        verdict = "WRONG" if not self.right else "met" if self.met else "missed"
        return f"{self.scenario:<12} {self.measured}\n{'':<12} target: {self.target}: {verdict}"


@dataclass(slots=True)
class Setting:
    """Everything that a scenario needs: options, folder, model, texts and load generator."""

    args: argparse.Namespace
    folder: Path  # scratch folder with the texts; also gets the servers' logs
    embedder: Embedder
    materials: dict[str, Material]  # by kind: "documents", "queries"
    generator: GeneratorProcess
    servers: int = 0  # number of servers started so far
    capacities: dict[str, float] = field(default_factory=dict)  # results of `capacity` by kind

    @contextmanager
    def server(self, *options: str) -> Iterator[ServerProcess]:
        """Run a server with the run's model and these options of `lastword serve` during the `with` block."""
        with serving(self.server_options(*options), self.log()) as server:
            yield server

    def server_options(self, *options: str) -> list[str]:
        """Return the command line of the server: the run's model, then `options`."""
        model = [] if self.args.model is None else [str(self.args.model)]
        return [*model, *options]

    def log(self) -> Path:
        """Return the path of a new file for a server's log."""
        self.servers += 1
        return self.folder / f"server-{self.servers}.log"

    def size(self, kind: str) -> int:
        """Return the number of texts per request: --texts, or all texts of the kind if there are fewer."""
        return min(int(self.args.texts), len(self.materials[kind].texts))

    def burst(self, server: ServerProcess, kind: str) -> dict[str, Any]:
        """Send every text of a kind once, in requests that arrive far faster than they are answered."""
        size = self.size(kind)
        count = self.materials[kind].blocks(size)
        return self.generator.send(Load(server.url, kind, size, rate=400.0, count=count))

    def capacity(self, kind: str) -> float:
        """Return how many requests per second `encode` could answer without a server; load rates are multiples of this.

        It is measured once for documents and once for queries.
        """
        if kind not in self.capacities:
            texts = list(self.materials[kind].texts)
            encode = encoder(self.embedder, kind)
            start = time.perf_counter()
            encode(texts, show_progress_bar=False)
            speed = len(texts) / (time.perf_counter() - start)
            self.capacities[kind] = speed / self.size(kind)
        return self.capacities[kind]


def encoder(embedder: Embedder, kind: str) -> Callable[..., Any]:
    """Return the method that embeds texts of a kind: `encode_document` or `encode_query`."""
    return embedder.encode_document if kind == "documents" else embedder.encode_query


def make_materials(embedder: Embedder, *, quick: bool) -> dict[str, Material]:
    """Make the documents and the queries and compute their vectors; return them by kind."""
    counts = QUICK_COUNTS if quick else COUNTS
    fp32 = str(embedder.info.dtype) == "torch.float32" and embedder.info.quantize is None
    made: Sequence[Sequence[str]] = [each.texts for each in workloads(*counts, 0)[:2]]
    return {
        kind: Material(
            texts,
            encoder(embedder, kind)(texts, show_progress_bar=False).float().numpy(),
            kind,
            FP32_TOLERANCE if fp32 else TOLERANCE,
        )
        for kind, texts in zip(KINDS, made, strict=True)
    }


def is_right(*results: dict[str, Any]) -> bool:
    """Return whether, in the results of some loads, every request was answered and no answer was wrong."""
    return all(not each["wrong"] and not each["statuses"].get("0") for each in results)


def counts(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a load without its long lists, for the JSON file."""
    return {name: each for name, each in result.items() if name not in ("latencies", "sent")}
