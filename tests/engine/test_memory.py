"""Memory of a CPU run does not grow with the number of differently sized batches."""

import subprocess
import sys
from pathlib import Path

import pytest

from lastword import memory

RUN = """
import random, sys, torch
from lastword import Embedder, memory
torch.set_num_threads(1)
model = Embedder(sys.argv[1], device="cpu", max_batch_tokens=4000)
draw = random.Random(0)

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def encode(count):
    for i in range(count):
        model.encode([f"{i} {j} " + "word " * draw.randrange(1, 120) for j in range(400)])

encode(2)
before = anonymous()
encode(4)
memory.give_back()
print(anonymous() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_comes_back(tiny_checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, tiny_checkpoint], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 30_000, "kB more after the same work again"


def test_given_back_after_every_few_batches(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lastword import Embedder

    calls: list[int] = []
    monkeypatch.setattr(memory, "_trim", lambda: calls.append)
    model = Embedder(tiny_checkpoint, device="cpu", max_batch_tokens=20)
    model.encode([f"{i} and some words" for i in range(200)])
    assert len(calls) == model.plan([f"{i} and some words" for i in range(200)]).batches // 8 > 2


def test_nothing_to_do_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._trim.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    memory.give_back()
    memory._trim.cache_clear()
