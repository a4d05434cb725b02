"""Vectors reach the host without a wait between batches; tasks can be pickled.

Messages between processes: tensors of any kind arrive unchanged, and only their own elements are sent.
"""

import pickle
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lastword import InputError
from lastword.batching.forest import plan_forests
from lastword.runtime.runner import EmbedTask, StatesTask, to_host
from lastword.runtime.serialization import pack, unpack
from lastword.weights import Checkpoint, read_config


def test_on_a_cpu_nothing_is_copied() -> None:
    vectors = torch.ones(2, 3)
    assert to_host(vectors)() is vectors


def test_the_copy_is_waited_for_by_its_own_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use stubs for the pinned memory, the stream and the event of a GPU."""
    calls: list[str] = []
    host = SimpleNamespace(
        copy_=lambda source, non_blocking: calls.append(f"copy {non_blocking}"),
    )
    event = SimpleNamespace(synchronize=lambda: calls.append("synchronize"))
    stream = SimpleNamespace(record_event=lambda: calls.append("record") or event)

    def empty(shape, dtype, device, pin_memory):
        assert (shape, dtype, device.type, pin_memory) == ((2, 3), torch.float32, "cpu", True)
        return host

    device = torch.device("cuda", 1)
    vectors = SimpleNamespace(device=device, shape=(2, 3), dtype=torch.float32)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda asked: stream if asked == device else None
    )
    wait = to_host(vectors)
    assert calls == ["copy True", "record"]
    assert wait() is host
    assert calls == ["copy True", "record", "synchronize"]


@pytest.mark.parametrize("task", [EmbedTask(24, normalize=True), StatesTask((0, 2))])
def test_a_task_can_be_sent_and_does_not_change(task: EmbedTask | StatesTask) -> None:
    assert pickle.loads(pickle.dumps(task)) == task
    with pytest.raises(FrozenInstanceError):
        setattr(task, fields(task)[0].name, 3)


# Messages between processes.

TENSORS = {
    "fp32": torch.randn(3, 5),
    "bf16": torch.randn(7).bfloat16(),
    "int64": torch.arange(9).view(3, 3),
    "bool": torch.tensor([True, False]),
    "a column": torch.randn(4, 6)[:, 2],
    "transposed": torch.randn(4, 6).T,
    "a number": torch.tensor(3.5),
    "empty": torch.empty(0, 8),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name: str) -> None:
    tensor = TENSORS[name]
    arrived = unpack(pack({"it": tensor}))["it"]
    assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(arrived, tensor)
    arrived.zero_()  # it is writable


def test_a_slice_is_sent_without_the_rest() -> None:
    assert len(pack(torch.zeros(1_000_000)[:10])) < 500


def test_a_forest_and_a_checkpoint(tiny_checkpoint: Path) -> None:
    (forest,) = plan_forests([[1, 2, 3] * 5, [1, 2, 3] * 5, [4]], 100)
    arrived = unpack(pack(forest))
    assert arrived.segments == forest.segments
    assert all(
        torch.equal(getattr(arrived, n), getattr(forest, n)) for n in ("ids", "texts", "distinct")
    )
    checkpoint = Checkpoint(tiny_checkpoint, read_config(tiny_checkpoint))
    data = pack(checkpoint)
    assert len(data) < 20_000, "headers only, no weights"
    assert unpack(data).fingerprint == checkpoint.fingerprint


def test_an_error_keeps_its_index() -> None:
    error = unpack(pack(InputError("text 5", "bad", index=5)))
    assert (type(error), str(error), error.index) == (InputError, "text 5: bad.", 5)
