"""Memory of a CPU run does not grow with the number of differently sized batches."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.process_memory import numbers_of

from lastword import WeightsError
from lastword.runtime import malloc

RUN = """
import random, sys, torch
from lastword import Embedder
from lastword.bench.memory import held_bytes
torch.set_num_threads(1)
model = Embedder(sys.argv[1], device="cpu", max_batch_tokens=4000)
draw = random.Random(0)

def encode(count):
    for i in range(count):
        model.encode([f"{i} {j} " + "word " * draw.randrange(1, 120) for j in range(400)])

encode(2)
before = held_bytes("RssAnon")
encode(4)
print(held_bytes("RssAnon") - before)
"""

PAGES = """
import resource, torch
from lastword.runtime import malloc

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(12 << 20)  # 48 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
malloc.keep_blocks()
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays(tiny_checkpoint: Path) -> None:
    (grown,) = numbers_of(RUN, tiny_checkpoint)
    assert grown < 30_000 * 1024, "more bytes after the same work again"


@pytest.mark.skipif(not malloc.keep_blocks(), reason="the C library has no such options")
def test_large_blocks_serve_again() -> None:
    faults = numbers_of(PAGES)
    assert faults[1] < faults[0] / 4, "fresh pages for a block that had just been freed"


def test_a_load_that_fails_leaves_blocks_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    granting = SimpleNamespace(mallopt=lambda *option: asked.append(option) or 1)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: granting)
    with pytest.raises(WeightsError), malloc.loading():
        assert asked == [(-3, 1 << 20)], "blocks of 1 MB and more are the system's when freed"
        raise WeightsError("a shard is cut short")
    assert asked[1:] == [(-3, 256 << 20), (-1, 512 << 20)]


def test_an_option_that_is_refused_sets_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    refusing = SimpleNamespace(mallopt=lambda option, _: asked.append(option) or 0)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: refusing)
    assert not malloc.keep_blocks()
    assert asked == [-3]


def test_nothing_to_do_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not malloc.keep_blocks(), "a C library without the function"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked elsewhere"))
    assert not malloc.keep_blocks()
