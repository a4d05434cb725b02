"""Measure the libraries at one precision: compare their vectors, then time them in turns, with new texts per round."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lastword.bench.models.workloads import Workload
from lastword.bench.peers.child import Child
from lastword.bench.peers.libraries import OURS, Setup, open_library
from lastword.bench.peers.schedule import Schedule
from lastword.errors import LastwordError

TOLERANCE = 2e-5  # largest absolute difference between a library's fp32 vectors and lastword's
LOG_ODDS_TOLERANCE = 1e-4  # the same for log-odds of rerankers
# Least cosine to lastword's fp32 vectors; a library with a smaller one computes something else.
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.98, "8bit": 0.9}

LoadsOf = Callable[[int], list[Workload]]  # from a round's number to its workloads


@dataclass(frozen=True, slots=True)
class Contender:
    """A library that takes part, and the label of its rows; threads and device are the run's, where they are None."""

    label: str
    library: str
    threads: int | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    """A timed row of a workload's result: a library's process, and whether it may reuse a prompt's keys and values."""

    label: str
    child: Child
    cache: bool


@dataclass(slots=True)
class Accuracy:
    """How far vectors are from lastword's fp32 vectors: largest difference of a number, mean and least cosine."""

    max_abs_difference: float
    mean_cosine: float
    min_cosine: float


@dataclass(slots=True)
class Group:
    """The measurements of one precision, by workload and label."""

    precision: str
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    accuracy: dict[str, dict[str, Accuracy]] = field(default_factory=dict)
    cached_tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    differs: bool = False  # whether any library's results are too far from the reference


@dataclass(slots=True)
class Runner:
    """Runs the libraries of one precision.

    `reference` has lastword's fp32 vectors of round 0, by workload. `matmul` measures the rate of a matmul, and is
    called before each workload of a round. `say` prints a line.
    """

    setup: Setup
    precision: str
    loads_of: LoadsOf
    rounds: int
    schedule: Schedule
    reference: dict[str, Tensor]
    matmul: Callable[[], None]
    say: Callable[[str], None]

    def run(self, contenders: list[Contender], longest: int) -> Group:
        """Start the libraries, compare their vectors, then time them.

        If lastword fails, its error is raised. Any other library that fails is left out, with the reason.
        """
        group = Group(self.precision)
        children: dict[str, Child] = {}
        try:
            for each in contenders:
                with self._left_out(group, each.label):
                    started = time.perf_counter()
                    children[each.label] = open_library(
                        each.library,
                        self.setup,
                        self.precision,
                        threads=each.threads or self.setup.threads,
                        device=each.device,
                        longest=longest,
                    )
                    self.schedule.done(
                        self._key(each.label, "start"), time.perf_counter() - started
                    )
            lanes = {load.name: lanes_of(children, load, self.setup) for load in self.loads_of(0)}
            for load in self.loads_of(0):
                self._compare(group, lanes, load)
            for turn in range(1, self.rounds + 1):
                self._round(group, lanes, turn)
            for label, child in children.items():
                with self._left_out(group, label):
                    group.peak_bytes[label] = int(child.ask(do="peak")["bytes"])
        finally:
            for child in children.values():
                child.close()
        return group

    def _key(self, label: str, part: str) -> tuple[str, str, str]:
        return self.precision, label, part

    @contextmanager
    def _left_out(self, group: Group, label: str) -> Iterator[None]:
        """Pass on an error of lastword in the `with` block; turn any other library's error into a note."""
        try:
            yield
        except LastwordError as error:
            if label == OURS:
                raise
            error.where = f"{label} {self.precision} is left out"
            self._note(group, label, str(error))

    def _note(self, group: Group, label: str, reason: str) -> None:
        group.left_out.append(reason)
        self.say(reason)
        self.schedule.drop(self.precision, label)

    def _compare(self, group: Group, lanes: dict[str, list[Lane]], load: Workload) -> None:
        """Compare each lane's vectors of round 0 with the reference; drop the lanes whose vectors are too different."""
        group.accuracy[load.name], kept = {}, []
        for lane in lanes[load.name]:
            with self._left_out(group, lane.label):
                vectors, seconds = embed(self.setup, lane, load)
                self._done(load, lane, seconds, "vectors")
                if self.precision == "fp32" and lane.label == OURS:
                    self.reference[load.name] = vectors
                accuracy = accuracy_of(vectors, self.reference[load.name])
                pairs = load.kind == "pair"
                allowed = LOG_ODDS_TOLERANCE if pairs else TOLERANCE
                wrong = disagreement(accuracy, self.precision, allowed)
                if wrong is not None:
                    group.differs = True
                    what = f"{'log-odds' if pairs else 'vectors'} {wrong}: no figures"
                    reason = f"{lane.label} {self.precision}, {load.title}: {what}"
                    self._note(group, lane.label, reason)
                    continue
                group.accuracy[load.name][lane.label] = accuracy
                kept.append(lane)
        lanes[load.name] = kept

    def _round(self, group: Group, lanes: dict[str, list[Lane]], turn: int) -> None:
        """Time every workload of a round once in each lane; the lanes take turns at going first."""
        for load in self.loads_of(turn):
            self.matmul()
            here = lanes[load.name]
            taken = group.seconds.setdefault(load.name, {lane.label: [] for lane in here})
            first = turn % max(1, len(here))
            path = str(self.setup.write_texts(load))
            for lane in here[first:] + here[:first]:
                with self._left_out(group, lane.label):
                    order = {"do": "run", "texts": path, "save": None, "cache": lane.cache}
                    answer = lane.child.ask(**order)
                    taken[lane.label].append(answer["seconds"])
                    if "cached_tokens" in answer:
                        cached = group.cached_tokens.setdefault(load.name, {})
                        cached[lane.label] = answer["cached_tokens"]
                    self._done(load, lane, answer["seconds"], f"round {turn}/{self.rounds}")
            for label in [label for label, times in taken.items() if len(times) < turn]:
                del taken[label]  # this lane failed
                lanes[load.name] = [lane for lane in lanes[load.name] if lane.label != label]

    def _done(self, load: Workload, lane: Lane, seconds: float, what: str) -> None:
        self.schedule.done(self._key(lane.label, load.name), seconds)
        self.say(
            f"{self.precision} {what} {load.title}, {lane.label}: {seconds:.2f} s; "
            f"{self.schedule.time_left()}"
        )


def lanes_of(children: Mapping[str, Child], load: Workload, setup: Setup) -> list[Lane]:
    """Return the lanes of a workload: one per library, and if vLLM can cache the prompt, also vLLM without cache."""
    lanes = []
    for label, child in children.items():
        cached = load.kind != "document" and (label != "vllm" or setup.block_size(load.kind) > 0)
        lanes.append(Lane(label, child, cache=cached))
        if label == "vllm" and cached:
            lanes.append(Lane(f"{label}, no prefix cache", child, cache=False))
    return lanes


def embed(setup: Setup, lane: Lane, load: Workload) -> tuple[Tensor, float]:
    """Compute a workload in one lane; return the results and the seconds that it took.

    The results are fp32: vectors [N, C], or log-odds of pairs [1, N].
    """
    path = setup.scratch / "vectors"
    texts = str(setup.write_texts(load))
    answer = lane.child.ask(do="run", texts=texts, save=str(path), cache=lane.cache)
    rows = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)
    return rows.view(1 if load.kind == "pair" else len(load.texts), -1), answer["seconds"]


def accuracy_of(vectors: Tensor, reference: Tensor) -> Accuracy:
    """Compare vectors with the reference vectors."""
    cosine = torch.nn.functional.cosine_similarity(vectors.double(), reference.double())
    return Accuracy(
        float((vectors - reference).abs().max()), float(cosine.mean()), float(cosine.min())
    )


def disagreement(accuracy: Accuracy, precision: str, allowed: float = TOLERANCE) -> str | None:
    """Return in words how vectors disagree with the reference; None if they agree.

    In fp32, numbers may differ by at most `allowed`; at every precision, the cosine must be at least `LEAST_COSINE`.
    """
    if precision == "fp32" and not accuracy.max_abs_difference <= allowed:
        return f"differ by {accuracy.max_abs_difference:.2e}, allowed {allowed:.0e}"
    least = LEAST_COSINE[precision]
    if not accuracy.min_cosine >= least:
        return f"have a cosine of {accuracy.min_cosine:.4f}, allowed at least {least}"
    return None
