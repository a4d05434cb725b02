"""Vectors reach the host without a wait between batches; tasks can be pickled; the model in this process."""

import pickle
from dataclasses import FrozenInstanceError, fields
from types import SimpleNamespace

import pytest
import torch

from lastword.runtime.runner import EmbedTask, StatesTask, to_host


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
