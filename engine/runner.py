"""Where batches are computed: in this process, or in processes of their own, one a device (`pool.py`).

A task is a function of a model and a forest, of a module's top level or a partial of one, so that it can be sent. A
runner starts it on a batch and gives what waits for the tensor. Knows no texts.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor

from lastword.forest import Forest
from lastword.model import Model
from lastword.pipeline import Wait

Task = Callable[[Model, Forest], Tensor]


class Runner(Protocol):
    """Computes batches.

    `depth`: batches to start before the first of them is waited for. `ahead`: whether this process has time to prepare
    texts meanwhile.
    """

    depth: int
    ahead: bool

    def start(self, task: Task, forest: Forest) -> Wait:
        """Begin a batch; the function returned gives the task's tensor on the CPU, or raises what it raised."""

    def close(self) -> None:
        """Give back what this runner holds; nothing can be started any more."""


class InProcess:
    """The model in this process; a batch is computed where its tensor is waited for."""

    depth = 0

    def __init__(self, model: Model) -> None:
        self.model = model
        self.ahead = model.device.type != "cpu"

    def start(self, task: Task, forest: Forest) -> Wait:
        return partial(task, self.model, forest)

    def close(self) -> None:
        """Nothing: the model goes with its last reference."""
