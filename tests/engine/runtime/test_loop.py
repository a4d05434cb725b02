"""Windows prepared ahead: same order, same errors at the same place, bounded reading, no thread left behind."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from lastword import Embedder, InputError
from lastword.report import Report
from lastword.runtime import encoder
from lastword.runtime import loop as pipeline
from lastword.runtime.loop import compute_windows, prepare_windows


def ignore(count: int) -> None:
    """What progress and notices are told is of no interest here."""


SIZE = 100  # texts of a window, enough to be prepared in the thread


def windows(count: int, read: list[int] | None = None, fail: int = -1) -> Iterator[list[str]]:
    for number in range(count):
        if number == fail:
            raise OSError(f"window {number}: unreadable")
        if read is not None:
            read.append(number)
        yield [f"{number}.{i}" for i in range(SIZE)]


def prepare(texts: list[str], first: int, counts: Report) -> Iterator[str]:
    """Stands for tokenizer and packing: a few 'forests' a window."""
    counts.cut += 1
    if texts[0] == "2.0" and texts[1] == "bad":
        raise InputError(f"text {first + 1}: bad", first + 1)
    yield from (f"{first}+{part}" for part in range(3))


@pytest.mark.parametrize("ahead", [False, True])
def test_order_and_counts(ahead: bool) -> None:
    seen = []
    for window in prepare_windows(windows(5), prepare, ahead=ahead):
        seen.append((window.first, window.size, list(window.forests)))
        assert (window.counts.cut, window.counts.texts) == (1, SIZE)
    assert seen == [(n * SIZE, SIZE, [f"{n * SIZE}+{p}" for p in range(3)]) for n in range(5)]


@pytest.mark.parametrize("ahead", [False, True])
def test_one_window_is_read_ahead_by_the_callers_thread(ahead: bool) -> None:
    read: list[int] = []
    readers = set()

    def source() -> Iterator[list[str]]:
        for window in windows(9, read):
            readers.add(threading.get_ident())
            yield window

    prepared = prepare_windows(source(), prepare, ahead=ahead)
    for number in range(4):
        list(next(prepared).forests)
        assert len(read) == number + 1 + ahead
    prepared.close()
    assert readers == {threading.get_ident()}


def test_the_next_window_is_prepared_while_one_is_computed() -> None:
    began = threading.Event()

    def slow(texts: list[str], first: int, counts: Report) -> Iterator[int]:
        if first == SIZE:
            began.set()
        yield first

    prepared = prepare_windows(windows(3), slow, ahead=True)
    assert next(next(prepared).forests) == 0
    assert began.wait(10), "nothing was prepared ahead"
    prepared.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_an_unreadable_window_fails_after_those_before_it(ahead: bool) -> None:
    done = []
    with pytest.raises(OSError, match="window 2: unreadable"):
        for window in prepare_windows(windows(4, fail=2), prepare, ahead=ahead):
            done.extend(window.forests)
    assert len(done) == 6


@pytest.mark.parametrize("ahead", [False, True])
def test_a_bad_text_fails_after_the_windows_before_it(ahead: bool) -> None:
    texts = list(windows(4))
    texts[2][1] = "bad"
    done = []
    with pytest.raises(InputError, match="text 201: bad") as caught:
        for window in prepare_windows(iter(texts), prepare, ahead=ahead):
            done.extend(window.forests)
    assert (len(done), caught.value.index) == (6, 201)


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lastword-prepare")]


@pytest.mark.parametrize("how", ["closed", "failed", "Ctrl-C", "done"])
def test_no_thread_is_left(how: str) -> None:
    made = []

    def endless(texts: list[str], first: int, counts: Report) -> Iterator[int]:
        made.append(first)
        for part in range(2 if how == "done" else 10**9):
            time.sleep(0.001)
            yield part

    def compute(forest: int) -> torch.Tensor:
        assert running()
        raise KeyboardInterrupt if how == "Ctrl-C" else ValueError("broken")

    prepared = prepare_windows(windows(3), endless, ahead=True)
    if how == "done":
        assert [list(window.forests) for window in prepared] == [[0, 1]] * 3
    elif how == "closed":
        assert next(next(prepared).forests) == 0
        prepared.close()
    else:
        with pytest.raises((KeyboardInterrupt, ValueError)):
            start = partial(partial, compute)
            list(compute_windows(prepared, start, 4, Report(), ignore, too_large=ignore))
    assert running() == []
    assert how == "done" or made == [0], "the window in waiting is not begun any more"


def test_few_texts_take_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.ThreadPoolExecutor, "submit", None)
    (window,) = prepare_windows(iter([["a", "b"]]), prepare, ahead=True)
    assert len(list(window.forests)) == 3


@pytest.fixture
def both(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> dict[bool, Embedder]:
    """Two embedders on the CPU, of which one works as on a GPU: windows of 100 texts, prepared ahead."""
    monkeypatch.setattr("lastword.text.groups._WINDOW_TEXTS", SIZE)
    models = {ahead: Embedder(tiny_checkpoint, device="cpu") for ahead in (False, True)}
    plain = encoder.prepare_windows

    def chosen(source, prepare, *, ahead):
        return plain(source, prepare, ahead=prepare.func.__self__ is models[True]._encoder)

    monkeypatch.setattr(encoder, "prepare_windows", chosen)
    return models


TEXTS = [f"text number {i % 37} " * (i % 5 + 1) for i in range(3 * SIZE + 70)]


def test_the_same_vectors_and_counts(both: dict[bool, Embedder]) -> None:
    reports = {ahead: Report() for ahead in both}
    vectors = {
        ahead: torch.stack(list(model.encode_stream(TEXTS, report=reports[ahead])))
        for ahead, model in both.items()
    }
    assert torch.equal(vectors[True], vectors[False])
    for name in ("texts", "tokens_asked", "tokens_computed", "cut", "batches"):
        assert getattr(reports[True], name) == getattr(reports[False], name)
    assert reports[True].texts == len(TEXTS)
    assert reports[True].seconds > 0


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("bad", ["\udfff", None])
def test_a_stream_gives_all_windows_before_the_bad_text(
    ahead: bool, bad: str | None, both: dict[bool, Embedder]
) -> None:
    texts = [*TEXTS[:250], bad, *TEXTS[250:]]
    got = 0
    with pytest.raises(InputError, match="text 250: not") as caught:
        for _ in both[ahead].encode_stream(texts):
            got += 1
    assert (got, caught.value.index) == (200, 250)
    assert running() == []


def test_a_second_stream_counts_from_its_own_first_text(both: dict[bool, Embedder]) -> None:
    report = Report(texts=1000)
    with pytest.raises(InputError, match="text 1: not valid Unicode"):
        list(both[False].encode_stream(["a", "\udfff"], report=report))
