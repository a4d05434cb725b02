"""Tasks that tests give to worker processes, which import them by name."""

import os
import signal
import time
from dataclasses import dataclass

import torch


def pid(model, forest):
    return torch.tensor([os.getpid(), torch.get_num_threads()])


def sleep(seconds, model, forest):
    time.sleep(seconds)
    return torch.tensor([seconds])


def fail(error, model, forest):
    raise error


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail_unpicklable(model, forest):
    raise UnpicklableError("one", "two")


def die(model, forest):
    os.kill(os.getpid(), signal.SIGKILL)


def no_model(error, device):
    raise error


@dataclass
class NoRoom:
    """Imitates a `ModelLoader` on a device that has no memory left."""

    checkpoint: object
    config: object
    dtype: object
    quantize: object = None
    cuda_graphs: bool = True
    tune_process: bool = True
    score_row: object = None

    def __call__(self, device, loaded=None):
        raise torch.OutOfMemoryError("CUDA out of memory")


def no_process(device):
    os._exit(3)


def not_finite(dim, model, forest):
    return torch.full((len(forest.final_rows), dim), float("nan"))


def small(tokens, task, model, forest):
    if forest.tokens_computed > tokens:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return task(model, forest)


def runner_of(embedder, index):
    return index, os.getpid(), id(embedder.loop.runner)
