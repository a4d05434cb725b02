"""Process settings changed by loading a CPU model: when, and how to prevent it; memory that does not grow."""

import ctypes
import sys
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.messages import refusal
from helpers.project import numbers_of

from lastword import DeviceError, Embedder, WeightsError
from lastword.bench.checkpoint import make_checkpoint
from lastword.runtime import process_tuning

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
from lastword.runtime import process_tuning

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(12 << 20)  # 48 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
process_tuning.keep_blocks()
for _ in range(6):  # blocks that are aligned to pages of 2 MB find their places after a while
    faults()
print(faults())
"""


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.timing
@linux
def test_memory_stays(tiny_checkpoint: Path) -> None:
    (grown,) = numbers_of(RUN, tiny_checkpoint)
    assert grown < 30_000 * 1024, "more bytes after the same work again"


FREED = """
import gc, sys, torch
from lastword import Embedder
from lastword.bench.memory import held_bytes
torch.set_num_threads(1)

def opened():
    model = Embedder(sys.argv[1], device="cpu")
    model.encode(["word " * 400] * 8 + ["x"])
    return model

opened()
gc.collect()
before = held_bytes("RssAnon")
model = opened()
print(held_bytes("RssAnon") - before)
if sys.argv[2] == "closed":
    model.close()
else:
    del model
gc.collect()
print(held_bytes("RssAnon") - before)
"""


@pytest.mark.timing
@linux
@pytest.mark.parametrize("how", ["deleted", "closed"])
def test_memory_of_a_deleted_model_goes_back_to_the_system(how: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", hidden_size=512, intermediate_size=2048)
    held, left = numbers_of(FREED, folder, how)
    assert held > 30 << 20, "weights and the batch"
    assert left < 5 << 20, "bytes of a model that is gone"


def test_a_closed_model_refuses_texts(tiny_checkpoint: Path) -> None:
    with Embedder(tiny_checkpoint, device="cpu") as model:
        other = copy(model)
        model.encode(["x"])
    assert len(other.encode(["its copy goes on"])) == 1
    other.close()
    other.close()
    for each in (model, other):
        with refusal(DeviceError, where="device cpu", what="closed", remedy="Open it again."):
            each.encode(["x"])


@pytest.mark.skipif(not process_tuning.keep_blocks(), reason="the C library has no such options")
def test_large_blocks_are_reused() -> None:
    faults = numbers_of(PAGES)
    assert faults[1] < faults[0] / 4, "fresh pages for a block that had just been freed"


def test_a_load_that_fails_leaves_blocks_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    granting = SimpleNamespace(mallopt=lambda *option: asked.append(option) or 1)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: granting)
    with pytest.raises(WeightsError), process_tuning.tune_for_loading():
        assert asked == [(-3, 128 << 10)], "blocks of 128 kB and more are the system's when freed"
        raise WeightsError("model.safetensors", "cut short")
    assert asked[1:] == [(-3, 256 << 20), (-1, 512 << 20)]


def test_a_refused_option_changes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    refusing = SimpleNamespace(mallopt=lambda option, _: asked.append(option) or 0)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: refusing)
    assert not process_tuning.keep_blocks()
    assert asked == [-3]


def test_other_systems_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not process_tuning.keep_blocks(), "a C library without the function"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked elsewhere"))
    assert not process_tuning.keep_blocks()


# When it happens.

STATE = """
import os, sys, warnings
def state():
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY", "THP_MEM_ALLOC_ENABLE")
    quiet = any(f[1] is not None and "NumPy" in f[1].pattern for f in warnings.filters)
    return [int(os.environ.get(name, 0)) for name in names] + [int(quiet)]
import lastword.embedder, lastword.kernels, lastword.weights
imported = state()
lastword.Embedder(sys.argv[1], device="cpu", tune_process=sys.argv[2] == "tuned")
print(*imported, *state())
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [("tuned", [0, 0, 0, 0, 64, 64, 1, 0]), ("left out", [0] * 8)],
)
def test_a_process_is_tuned_when_a_model_loads_and_not_before(
    how: str, expected: list[int], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in process_tuning.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert numbers_of(STATE, tiny_checkpoint, how) == expected


def test_the_users_settings_stay(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in process_tuning.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    assert numbers_of(STATE, tiny_checkpoint, "tuned") == [7, 0, 0, 0, 7, 64, 1, 0]


def test_without_tuning_the_c_library_is_not_called(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(process_tuning, "_set", lambda option, _: asked.append(option))
    Embedder(tiny_checkpoint, device="cpu", tune_process=False)
    assert asked == []
    Embedder(tiny_checkpoint, device="cpu")
    assert asked == [-3, -3]


SPINNING = """
import os, sys
before = sys.argv[1] == "torch first"
if before:
    import torch
from lastword import InputError
unchanged = "GOMP_SPINCOUNT" in os.environ
from lastword import Embedder
print(int(unchanged), int(os.environ.get("GOMP_SPINCOUNT", 0)))
"""


@pytest.mark.parametrize(
    ("order", "setting", "expected"),
    [
        ("lastword first", {}, [0, 10_000]),
        ("lastword first", {"GOMP_SPINCOUNT": "7"}, [1, 7]),
        ("lastword first", {"OMP_WAIT_POLICY": "active"}, [0, 0]),
        ("torch first", {}, [0, 0]),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_or_torch_decided_before(
    order: str, setting: dict[str, str], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert numbers_of(SPINNING, order) == expected


GROWTH = """
import sys, torch
from lastword.bench.memory import held_bytes
torch.set_num_threads(1)
if sys.argv[2] == "torch computed before":
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(64, 64))
    torch.ops.mkldnn._linear_pointwise(torch.ones(8, 64), weight, None, "none", [], "")
from lastword import Embedder
model = Embedder(sys.argv[1], device="cpu")
for words in range(1, 20):
    model.encode("a " * words)
before = held_bytes("RssAnon")
for words in range(20, 300):
    model.encode("a " * words)
print(held_bytes("RssAnon") - before)
"""


@pytest.mark.timing
@linux
@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)
def test_the_caches_are_small_unless_torch_has_computed_before(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As documented for `Embedder`: each cache reads its variable once."""
    for name in process_tuning.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tuned,) = numbers_of(GROWTH, tiny_checkpoint, "a fresh process")
    (late,) = numbers_of(GROWTH, tiny_checkpoint, "torch computed before")
    assert tuned < 60 << 20, "bytes for 280 different numbers of rows"
    assert late > 3 * tuned, "the variables came too late to help"
