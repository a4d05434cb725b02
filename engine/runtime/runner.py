"""Where batches are computed: in this process, or in processes of their own, one a device (`pool.py`).

A task is a function of a model and a forest, of a module's top level or a partial of one, so that it can be sent. A
runner starts it on a batch and gives what waits for the tensor. Knows no texts.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.model.qwen3 import Model
from lastword.runtime.device import default_batch_tokens
from lastword.runtime.loop import Wait
from lastword.runtime.transfer import to_host

Task = Callable[[Model, Forest], Tensor]

# The thread that prepares texts may hold Python's lock for as long as a small model's batch takes (expected, see
# bench/LOG.md, 2026-11-27). Batches that wait take no memory but inputs and vectors.
_GPU_DEPTH = 3


class Runner(Protocol):
    """Computes batches.

    `name`: of the devices. `depth`: batches to start beyond the one that is waited for, the end of a window counting as
    one. `ahead`: whether this process has time to prepare texts meanwhile. `batch_tokens`: tokens of a batch where the
    caller does not say.
    """

    name: str
    depth: int
    ahead: bool
    batch_tokens: int

    def start(self, task: Task, forest: Forest) -> Wait:
        """Begin a batch; the function returned gives the task's tensor on the CPU, or raises torch.OutOfMemoryError."""

    def close(self) -> None:
        """End the processes that this runner has, if any: what is started or waited for there is a DeviceError."""


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
        return partial(_out_of_memory, problem)

    def close(self) -> None:
        """Nothing: the model goes with its last reference."""


def _out_of_memory(problem: str) -> Tensor:
    raise torch.OutOfMemoryError(problem)
