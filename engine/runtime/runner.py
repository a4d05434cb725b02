"""Where batches are computed: in this process, or in processes of their own, one per device (`pool.py`).

A task says what to compute of a batch; it is a small frozen dataclass, so that a worker process can be sent it. A
runner starts it and gives what waits for the tensor. Knows no texts.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for_some
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.model.hidden_states import last_token_states
from lastword.model.postprocess import postprocess
from lastword.model.qwen3 import Model
from lastword.runtime import process_tuning
from lastword.runtime.device import default_batch_tokens
from lastword.weights import ModelConfig, WeightsSource

# The thread that prepares texts may hold Python's lock for as long as a small model's batch takes (expected, see
# bench/LOG.md, 2026-11-27). Batches that wait take no memory but inputs and vectors.
_GPU_DEPTH = 3

# Waits for a batch that was started and gives its tensor.
Wait = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class FutureWait:
    """A `Wait` for a batch that may finish before those which were started before it."""

    future: "Future[Tensor]"

    def __call__(self) -> Tensor:
        return self.future.result()


def first_done(waits: Sequence[Wait], seconds: float | None) -> int | None:
    """Find a batch whose tensor is there; those that keep their order go by it.

    Args:
        waits: of the batches that were started.
        seconds: to wait for one; None for as long as it takes.
    """
    futures = [wait.future for wait in waits if isinstance(wait, FutureWait)]
    if len(futures) < len(waits):
        return 0
    done, _ = wait_for_some(futures, seconds, FIRST_COMPLETED)
    return next((place for place, future in enumerate(futures) if future in done), None)


def failed(error: Exception) -> Wait:
    """Make the wait for a batch that could not be begun."""

    def wait() -> Tensor:
        raise error

    return wait


class Task(Protocol):
    """What to compute of a batch: a tensor with a row for each of its N' distinct texts."""

    def __call__(self, model: Model, forest: Forest, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class EmbedTask:
    """The vectors [N', dim] fp32, of length 1 with `normalize`; `dim` None keeps all dimensions."""

    dim: int | None
    normalize: bool

    def __call__(self, model: Model, forest: Forest, /) -> Tensor:
        states = model.forward(forest)
        return postprocess(states, self.dim or states.shape[1], normalize=self.normalize)


@dataclass(frozen=True, slots=True)
class StatesTask:
    """The hidden states [N', len(layers), C] fp32 of each last token, see `last_token_states`."""

    layers: tuple[int, ...]

    def __call__(self, model: Model, forest: Forest, /) -> Tensor:
        return last_token_states(model, forest, self.layers)


class Runner(Protocol):
    """Computes batches.

    `name`: of the devices. `depth`: batches to start beyond the one that is waited for. `ahead`: whether this process
    has time to prepare texts and use results meanwhile. `batch_tokens`: of a batch where the caller does not say.
    """

    name: str
    depth: int
    ahead: bool
    batch_tokens: int

    def start(self, task: Task, forest: Forest) -> Wait:
        """Begin a batch; the function returned gives the task's tensor on the CPU, or raises torch.OutOfMemoryError."""

    def close(self) -> None:
        """End the processes that this runner has, if any: what is started or waited for there is a DeviceError."""


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """How to load a model: everything but the device. A worker process is sent one."""

    checkpoint: WeightsSource
    config: ModelConfig
    dtype: torch.dtype
    quantize: str | None = None
    cuda_graphs: bool = True
    tune_process: bool = True

    def __call__(
        self, device: torch.device, loaded: Callable[[int], None] = lambda _: None
    ) -> Model:
        """Load it; `loaded` is told of layers as they are read."""
        tuned = self.tune_process and device.type == "cpu"
        with process_tuning.loading() if tuned else nullcontext():
            return Model(
                self.checkpoint,
                self.config,
                device,
                self.dtype,
                self.quantize,
                cuda_graphs=self.cuda_graphs,
                loaded=loaded,
            )


class InProcess:
    """The model in this process; on a GPU the vectors of a batch come while the next ones are computed."""

    def __init__(self, model: Model) -> None:
        self.model, self.name = model, str(model.device)
        self.ahead = model.device.type != "cpu"
        self.depth = _GPU_DEPTH if self.ahead else 0
        self.batch_tokens = default_batch_tokens(model.device, model.token_bytes)

    def start(self, task: Task, forest: Forest) -> Wait:
        try:
            return to_host(task(self.model, forest))
        except torch.OutOfMemoryError as error:
            problem = str(error)
        torch.cuda.empty_cache()  # what the forward held is free by now
        return failed(torch.OutOfMemoryError(problem))

    def close(self) -> None:
        """Nothing: the model goes with its last reference."""


def to_host(vectors: Tensor) -> Wait:
    """Start copying vectors to pinned memory; the function returned waits for this copy alone and gives them.

    PyTorch keeps the device's memory until work queued before has read it. On a CPU nothing is copied.
    """
    if vectors.device.type == "cpu":
        return lambda: vectors
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.current_stream(vectors.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
