"""Vectors come to the host without a wait between two batches: a stub stands for the device and its events."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from lastword.batching.forest import Forest, plan_forests
from lastword.report import Report
from lastword.runtime.loop import compute_windows, prepare_windows
from lastword.runtime.transfer import to_host

TEXTS = 6


def prepare(texts: list[str], first: int, counts: Report) -> Iterator[Forest]:
    """A batch a text, of one token: the text's number."""
    for i, text in enumerate(texts):
        (forest,) = plan_forests([[int(text)]], 10)
        object.__setattr__(forest, "texts", torch.tensor([i]))
        yield forest


def compute(forest: Forest) -> torch.Tensor:
    return forest.ids[:, None].float().expand(-1, 4)


def run(events: list[str]) -> list[torch.Tensor]:
    """Two windows of three batches; what is started, waited for and yielded goes to `events`."""

    def start(forest: Forest) -> Callable[[], torch.Tensor]:
        vectors = compute(forest)
        name = str(int(vectors[0, 0]))
        events.append(f"start {name}")

        def wait() -> torch.Tensor:
            events.append(f"wait {name}")
            return vectors

        return wait

    windows = prepare_windows(iter([["0", "1", "2"], ["3", "4", "5"]]), prepare, ahead=False)
    done = []
    for window in compute_windows(
        windows, start, 4, Report(), lambda _: events.append("done"), too_large=pytest.fail, depth=1
    ):
        events.append("window")
        done.append(window)
    return done


def test_a_batch_is_waited_for_when_the_next_has_started() -> None:
    events: list[str] = []
    vectors = torch.cat(run(events))
    assert vectors[:, 0].tolist() == list(range(TEXTS))
    assert (
        events
        == """
        start 0|start 1|wait 0|done|start 2|wait 1|done|wait 2|done|start 3|window
        |start 4|wait 3|done|start 5|wait 4|done|wait 5|done|window
    """.replace("\n", "")
        .replace("  ", "")
        .split("|")
    )


def test_on_a_cpu_nothing_is_copied() -> None:
    vectors = torch.ones(2, 3)
    assert to_host(vectors)() is vectors


def test_the_copy_is_waited_for_by_its_own_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stubs for the pinned memory, the stream and the event of a GPU."""
    calls: list[str] = []
    host = SimpleNamespace(
        copy_=lambda source, non_blocking: calls.append(f"copy {non_blocking}"),
    )
    event = SimpleNamespace(synchronize=lambda: calls.append("synchronize"))
    stream = SimpleNamespace(record_event=lambda: calls.append("record") or event)

    def empty(shape, dtype, pin_memory):
        assert (shape, dtype, pin_memory) == ((2, 3), torch.float32, True)
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
