"""Find the worker processes of a model on the CPU, and check whether they are running."""

import sys
import time
from pathlib import Path

import pytest
import torch

from lastword import Embedder
from lastword.batching.forest import plan_forests
from lastword.runtime.pool import Pool
from lastword.runtime.runner import ModelLoader
from lastword.weights import Checkpoint, read_config

CPU = torch.device("cpu")
(FOREST,) = plan_forests([[1, 2, 3]], 10)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def load(folder: Path) -> ModelLoader:
    config = read_config(folder)
    return ModelLoader(Checkpoint(folder, config), config, torch.float32)


def pool_of(embedder: Embedder) -> Pool:
    return embedder.loop.runner


def pids(pool: Pool) -> list[int]:
    return [worker._process.pid for worker in pool._workers]


def alive(pid: int) -> bool:
    """Return whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(processes: list[int], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, processes))
