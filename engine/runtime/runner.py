"""Runners compute batches: in this process, or in one worker process per device (`pool.py`).

A task says what to compute for a batch; it is a small frozen dataclass that can be sent to a worker process. A runner
starts a task on a batch and returns a function that waits for its tensor. This module knows nothing about texts.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for_some
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol, SupportsIndex

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.errors import DeviceError
from lastword.kernels.caller_settings import CPU, default_settings
from lastword.model.hidden_states import last_token_states, layer_numbers
from lastword.model.postprocess import postprocess, score
from lastword.model.qwen3 import Model
from lastword.runtime import process_tuning
from lastword.runtime.cuda_graphs import empty_cache
from lastword.runtime.device import default_batch_tokens
from lastword.weights import ModelConfig, WeightsSource

# Several batches are queued, because the thread that prepares texts may hold the GIL for as long as a small model's
# batch takes (predicted, not measured: bench/LOG.md, 2026-11-27). A queued batch takes memory only for inputs and
# vectors.
_GPU_DEPTH = 3

# Parts of the error of a runner that has been closed.
CLOSED = {
    "what": "closed",
    "got": "a closed model",
    "expected": "an open one",
    "remedy": "Open it again.",
}

# Waits for a started batch and returns its tensor.
Wait = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class FutureWait:
    """A `Wait` for a batch that may finish before batches started earlier."""

    future: "Future[Tensor]"

    def __call__(self) -> Tensor:
        return self.future.result()


def wait_for_first(waits: Sequence[Wait], seconds: float | None) -> int | None:
    """Wait until one of the started batches has finished, and return its index.

    Args:
        waits: what `start` returned for each batch, in the order of starting.
        seconds: longest time to wait; None for no limit.

    Returns:
        The index, or None if no batch finished in time. If not all are `FutureWait`s, batches finish in order, and 0 is
        returned at once.
    """
    futures = [wait.future for wait in waits if isinstance(wait, FutureWait)]
    if len(futures) < len(waits):
        return 0
    done, _ = wait_for_some(futures, seconds, FIRST_COMPLETED)
    return next((place for place, future in enumerate(futures) if future in done), None)


def check_process(name: str, owner: int) -> None:
    """Refuse to compute in a fork of the process that loaded the model: a fork lacks the threads and would hang.

    Args:
        name: names of the devices, for the message.
        owner: id of the process that loaded the model.

    Raises:
        DeviceError: this process is not the owner.
    """
    if os.getpid() != owner:
        raise DeviceError(
            f"device {name}",
            "belongs to another process",
            got=f"a call from process {os.getpid()}",
            expected=f"one from {owner}, which opened the model",
            remedy="Open the model again after the fork.",
        )


def raise_on_wait(error: Exception) -> Wait:
    """Return a `Wait` that raises `error`; for a batch that could not be started."""

    def wait() -> Tensor:
        raise error

    return wait


class Task(Protocol):
    """What to compute for a batch: called with the model and the batch, it returns N' rows, one per distinct text."""

    def __call__(self, model: Model, forest: Forest, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class EmbedTask:
    """Compute vectors [N', dim], fp32, scaled to length 1 if `normalize`; `dim` None keeps all dimensions."""

    dim: int | None
    normalize: bool

    def __call__(self, model: Model, forest: Forest, /) -> Tensor:
        states = model.forward(forest)
        return postprocess(states, self.dim or states.shape[1], normalize=self.normalize)


@dataclass(frozen=True, slots=True)
class StatesTask:
    """Compute the last tokens' hidden states, [N', len(layers), C], fp32; see `last_token_states`."""

    layers: tuple[int, ...]

    def __call__(self, model: Model, forest: Forest, /) -> Tensor:
        return last_token_states(model, forest, self.layers)


def states_task(
    layers: Iterable[SupportsIndex] | None, config: ModelConfig
) -> tuple[StatesTask, Tensor]:
    """Return the task for these layers, numbered as in transformers, and an empty tensor with rows like its results'.

    Raises:
        ConfigError: a layer does not exist.
    """
    task = StatesTask(layer_numbers(layers, config.num_hidden_layers))
    shape = (0, len(task.layers), config.hidden_size)
    return task, torch.empty(shape, dtype=torch.float32, device="cpu")


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Compute a reranker's scores, [N'], fp32, before any activation."""

    def __call__(self, model: Model, forest: Forest, /) -> Tensor:
        assert model.score_row is not None  # only a Reranker, which loads one, starts this task
        return score(model.forward(forest), model.score_row)


@dataclass(frozen=True, slots=True)
class WarmUpTask:
    """Warm a worker process's model up, whatever the batch; computes no rows. See `Model.warm_up`."""

    most_rows: int

    def __call__(self, model: Model, _: Forest, /) -> Tensor:
        model.warm_up(self.most_rows)
        return torch.empty(0, dtype=torch.float32, device="cpu")


class Runner(Protocol):
    """The interface of an object that computes batches.

    Args:
        name: names of the devices, for messages.
        depth: number of batches to start besides the one that is waited for.
        ahead: whether this process can prepare texts and use results while batches are computed.
        batch_tokens: default maximum tokens per batch.
        max_prompt_tokens: maximum tokens of a prompt that the model caches; 0 if it caches none.
    """

    name: str
    depth: int
    ahead: bool
    batch_tokens: int
    max_prompt_tokens: int

    def start(self, task: Task, forest: Forest) -> Wait:
        """Start a batch, and return a function that waits for the task's tensor and returns it on the CPU.

        That function raises torch.OutOfMemoryError if the batch does not fit in the device's memory.
        """

    def warm_up(self, most_rows: int) -> None:
        """On each device do what the first small batches would do otherwise: compile kernels, record CUDA graphs.

        Args:
            most_rows: maximum rows of a batch.

        Raises:
            Exception: what the kernels themselves raise.
        """

    def close(self) -> None:
        """Free the model, also in worker processes. Starting a batch then raises DeviceError."""


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads a model onto a device when called. It can be sent to a worker process.

    The arguments are as for `Model`, and `tune_process` as for `Embedder`.
    """

    checkpoint: WeightsSource
    config: ModelConfig
    dtype: torch.dtype
    quantize: str | None = None
    cuda_graphs: bool = True
    tune_process: bool = True
    score_row: Tensor | None = field(default=None, compare=False)  # only for a reranker

    def __call__(
        self, device: torch.device, loaded: Callable[[int], None] = lambda _: None
    ) -> Model:
        """Load the model onto a device, and call `loaded` with 1 after each layer."""
        process_tuning.prepare_threads(device)
        tuned = self.tune_process and device.type == "cpu"
        tuning = process_tuning.tune_for_loading() if tuned else nullcontext()
        with default_settings(device), tuning:
            return Model(
                self.checkpoint,
                self.config,
                device,
                self.dtype,
                self.quantize,
                cuda_graphs=self.cuda_graphs,
                score_row=self.score_row,
                loaded=loaded,
            )


class InProcess:
    """A runner with the model in this process. On a GPU it copies vectors to the host while later batches run."""

    def __init__(self, model: Model) -> None:
        self._model: Model | None = model
        self.name = str(model.device)
        self.ahead = model.device.type != "cpu"
        self.depth = _GPU_DEPTH if self.ahead else 0
        self.batch_tokens = default_batch_tokens(
            model.device, model.token_bytes, reserved=model.graph_bytes
        )
        self.max_prompt_tokens = model.max_prompt_tokens

    @property
    def model(self) -> Model:
        """The model. DeviceError is raised once the runner is closed."""
        if self._model is None:
            raise DeviceError(f"device {self.name}", **CLOSED)
        return self._model

    def start(self, task: Task, forest: Forest) -> Wait:
        try:
            return to_host(task(self.model, forest))
        except torch.OutOfMemoryError as error:
            problem = str(error)
        empty_cache()  # not earlier: by now the forward's tensors are released
        return raise_on_wait(torch.OutOfMemoryError(problem))

    def warm_up(self, most_rows: int) -> None:
        self.model.warm_up(most_rows)

    def close(self) -> None:
        """Free the model and return its memory to the system.

        If another thread is computing a batch, the model stays in memory until that batch is done.
        """
        self._free()
        if self.ahead:
            empty_cache()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            self._free()

    def _free(self) -> None:
        """Free the model, then call `return_memory`. What is freed after that call stays with the process."""
        if self._model is not None:
            self._model = None
            process_tuning.return_memory()


def to_host(vectors: Tensor) -> Wait:
    """Start copying vectors to pinned memory; return a function that waits for this copy only and returns the copy.

    PyTorch keeps the device memory until the copy has read it. Vectors on the CPU are not copied.
    """
    if vectors.device.type == "cpu":
        return lambda: vectors
    host = torch.empty(vectors.shape, dtype=vectors.dtype, device=CPU, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.current_stream(vectors.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
