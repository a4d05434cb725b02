"""Measure where a whole model's time goes: by stage from strings to vectors, and by operation in the forward.

Stages are timed one after the other, even on a GPU, where `encode` runs the first two during another batch's forward.
Operations are timed where the forward calls them; on a GPU they are launched one by one, each between two events.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch

from lastword import kernels
from lastword.batching.forest import Forest
from lastword.bench.measure import synchronize
from lastword.bench.models.flops import needed_by_operation, work
from lastword.bench.models.stages import forests_of, groups_of, ids_of, model_of
from lastword.embedder import Embedder
from lastword.model.postprocess import postprocess
from lastword.model.qwen3 import Model
from lastword.runtime.runner import to_host

# Parts of a layer and functions of `kernels` that a forward calls, and the operation for which the time of each counts.
_LAYER_PARTS = {
    "add_norm": "norms",
    "qkv": "qkv",
    "q": "qkv",
    "kv": "qkv",
    "o": "o",
    "gate_up": "gate_up",
    "down": "down",
}
_FUNCTIONS = {
    "embed_rms_norm": "norms",
    "add_rms_norm": "norms",
    "rope_tables": "rotation",
    "qk_norm_rope": "rotation",
    "forest_attention": "attention",
    "final_attention": "attention",
}
REST = "rest"  # the rest of the forward: packing, gathering rows, Python
TITLES = {
    "tokens": "tokens",
    "forests": "forests",
    "forward": "forward",
    "postprocess": "postprocess",
    "gate_up": "gate, up, SwiGLU",
    "qkv": "queries, keys, values",
    "down": "down",
    "o": "output of attention",
    "attention": "attention",
    "rotation": "QK-norm, RoPE",
    "norms": "norms, residual",
    REST: "rest",
}


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Median seconds for texts of one length by stage and operation, and the operations' MFU.

    MFU (model FLOPs utilisation) is the rate of the required FLOPs divided by the FLOP rate of a measured matmul.
    """

    stages_s: dict[str, float]
    operations_s: dict[str, float]
    operations_mfu: dict[str, float]  # matmuls and attention


class OperationClock:
    """Sums the seconds of all calls of the functions that `wrap` has wrapped; on a GPU it uses events on the stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._calls: list[tuple[str, Any, Any]] = []

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same as `call` and counts the time under `name`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = self._mark()
            result = call(*args, **kwargs)
            self._calls.append((name, began, self._mark()))
            return result

        return run

    def take(self) -> dict[str, float]:
        """Return the seconds by name that were counted since the previous call of this method."""
        synchronize(self._device)
        seconds: dict[str, float] = defaultdict(float)
        for name, began, ended in self._calls:
            on_gpu = self._device.type == "cuda"
            seconds[name] += began.elapsed_time(ended) / 1e3 if on_gpu else ended - began
        self._calls.clear()
        return dict(seconds)

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@contextmanager
def time_operations(model: Model, clock: OperationClock) -> Iterator[None]:
    """Let `clock` time every operation of the model's forwards that run in the `with` block."""
    with ExitStack() as patched:
        for function, name in _FUNCTIONS.items():
            timed = clock.wrap(name, getattr(kernels, function))
            patched.enter_context(patch.object(kernels, function, timed))
        for layer in model.layers:
            for part in _LAYER_PARTS.keys() & vars(layer).keys():
                timed = clock.wrap(_LAYER_PARTS[part], getattr(layer, part))
                patched.enter_context(patch.object(layer, part, timed))
        yield


def break_down(embedder: Embedder, texts: Sequence[str], *, rounds: int, rate: float) -> Breakdown:
    """Time each stage of an embedder, one after the other, and then each operation of its forward.

    Args:
        embedder: the model, on one device.
        texts: texts of equal length.
        rounds: number of rounds, of which medians are taken; one warm-up round comes before them.
        rate: rate of a measured matmul, in FLOP/s.

    Returns:
        The medians and the MFU.
    """
    model, groups = model_of(embedder), groups_of(embedder, texts)
    stages: list[dict[str, float]] = []
    operations: list[dict[str, float]] = []
    ids: list[list[list[int]]] = []
    for _ in range(rounds + 1):
        seconds: dict[str, float] = {}
        with _stage(seconds, "tokens", model.device):
            ids = ids_of(embedder, groups)
        with _stage(seconds, "forests", model.device):
            forests = forests_of(embedder, ids)
        with _stage(seconds, "forward", model.device):
            states = [model.forward(forest) for forest in forests]
        with _stage(seconds, "postprocess", model.device):
            waits = [to_host(postprocess(each, embedder.dim, normalize=True)) for each in states]
            for wait in waits:
                wait()
        stages.append(seconds)
        operations.append(_operations(model, forests))
    operations_s = _medians(operations[1:])
    needed = needed_by_operation(model.config, work(text for each in ids for text in each))
    mfu = {name: flops / operations_s[name] / rate for name, flops in needed.items()}
    return Breakdown(_medians(stages[1:]), operations_s, mfu)


def _operations(model: Model, forests: Sequence[Forest]) -> dict[str, float]:
    """Return the seconds of each operation for one forward over the forests.

    Operations cannot be timed in CUDA graphs, so the forward gets an observer, with which it does not use graphs.
    """
    clock = OperationClock(model.device)
    seconds: dict[str, float] = {}
    with time_operations(model, clock), _stage(seconds, REST, model.device):
        for forest in forests:
            model.forward(forest, observe=lambda *_: None)
    operations = clock.take()
    return {**operations, REST: max(0.0, seconds[REST] - sum(operations.values()))}


@contextmanager
def _stage(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    synchronize(device)
    began = perf_counter()
    yield
    synchronize(device)
    seconds[name] = perf_counter() - began


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: median(each[name] for each in rounds) for name in rounds[0]}


def breakdown_lines(lengths: Sequence[int], found: Sequence[Breakdown]) -> list[str]:
    """Format a table with one column per length: shares of the time by stage, then by operation, with MFU."""
    head = "".join(f"{f'{length:,} tokens':>18}" for length in lengths)
    stages = found[0].stages_s
    lines = [f"{'where the time goes':<24}{head}"]
    lines += [_line(name, [_share(each.stages_s, name) for each in found]) for name in stages]
    lines.append(f"{'in the forward':<24}" + f"{'MFU':>18}" * len(lengths))
    longest = found[-1].operations_s
    for name in sorted(longest, key=lambda name: (name == REST, -longest[name])):
        cells = [_share(each.operations_s, name) for each in found]
        if name in found[0].operations_mfu:
            for i, each in enumerate(found):
                cells[i] = f"{cells[i]}{each.operations_mfu[name]:6.0%}"
        lines.append(_line(name, cells))
    return lines


def _share(seconds: dict[str, float], name: str) -> str:
    return f"{seconds[name] / sum(seconds.values()):.1%}"


def _line(name: str, cells: Sequence[str]) -> str:
    columns = (f"{cell:>18}" if cell.count("%") == 2 else f"{cell:>12}{'':6}" for cell in cells)
    return f"  {TITLES[name]:<22}{''.join(columns)}".rstrip()
