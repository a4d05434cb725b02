"""Threads that work ahead of the caller: same order, bounded, errors in order, and no thread left behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from helpers.fake_devices import none_left, running

from lastword.runtime import threads
from lastword.runtime.threads import map_ahead, read_ahead, run_ahead


def never(_: object) -> bool:
    return False


# One item is prepared in a thread while the previous one is used.


def test_the_callers_thread_alone_reads_one_item_further() -> None:
    read: list[int] = []
    readers = set()

    def source() -> Iterator[int]:
        for number in range(9):
            read.append(number)
            readers.add(threading.get_ident())
            yield number

    done = map_ahead(lambda number: number * 2, source(), at_once=never)
    for number in range(4):
        assert next(done) == number * 2
        assert len(read) == number + 2
    done.close()
    assert readers == {threading.get_ident()}


def test_the_next_item_is_worked_on_while_one_is_used() -> None:
    began = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            began.set()
        return number

    done = map_ahead(work, iter(range(3)), at_once=never)
    assert next(done) == 0
    assert began.wait(10), "nothing was done ahead"
    done.close()
    assert none_left()


def test_long_work_learns_that_nobody_waits_for_it() -> None:
    began, ended = threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number == 1:
            began.set()
            while not threads.is_abandoned():
                time.sleep(0.01)
            ended.set()
        return number

    done = map_ahead(work, iter(range(3)), at_once=never)
    assert next(done) == 0
    assert began.wait(10)
    assert not ended.is_set()
    done.close()
    assert ended.wait(10), "the thread works on for nobody"
    assert not threads.is_abandoned()
    assert none_left()


def test_small_items_take_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.ThreadPoolExecutor, "submit", None)
    assert list(map_ahead(len, iter(["a", "bb"]), at_once=lambda _: True)) == [1, 2]


@pytest.mark.parametrize("fails", ["reading", "work"])
def test_a_failure_comes_after_the_items_before_it(fails: str) -> None:
    def source() -> Iterator[int]:
        for number in range(4):
            if number == 2 and fails == "reading":
                raise OSError("item 2: unreadable")
            yield number

    def work(number: int) -> int:
        if number == 2:
            raise OSError("item 2: unreadable")
        return number

    done = []
    with pytest.raises(OSError, match="item 2: unreadable"):
        done.extend(map_ahead(work, source(), at_once=never))
    assert done == [0, 1]
    assert none_left()


@pytest.mark.parametrize("how", ["closed", "forgotten", "failed", "Ctrl-C", "done"])
def test_no_preparing_thread_is_left(how: str) -> None:
    worked = []

    def work(number: int) -> int:
        worked.append(number)
        time.sleep(0.05)
        return number

    done = map_ahead(work, iter(range(5)), at_once=never)
    if how == "done":
        assert list(done) == list(range(5))
    else:
        assert next(done) == 0
        assert running()
    if how == "closed":
        done.close()
    elif how == "forgotten":
        del done
        gc.collect()
    elif how in ("failed", "Ctrl-C"):
        error = KeyboardInterrupt if how == "Ctrl-C" else ValueError
        with pytest.raises(error):
            done.throw(error())
    assert none_left()
    assert how == "done" or len(worked) <= 2, "the item in waiting is not begun any more"


def test_reading_ahead_is_bounded() -> None:
    read = []

    def source() -> Iterator[int]:
        for number in range(20):
            read.append(number)
            yield number

    for number in read_ahead(source(), 3):
        assert len(read) == min(20, number + 4)


# Results are computed in a thread while earlier ones are used.


def one_each(take, stopped) -> Iterator[int]:
    """Compute one result per item, as the loop does per group."""
    while not stopped():
        try:
            item = take(True)
        except StopIteration:
            return
        yield item * 10


def ahead(items: Iterator[int], most: int = 4, compute=one_each):
    return run_ahead(items, lambda item: item + 1, compute, most)


def ready(made: list[int], count: int) -> bool:
    deadline = time.monotonic() + 10
    while len(made) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    return len(made) >= count


@pytest.mark.parametrize("most", [2, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_the_same_results_in_order(count: int, most: int) -> None:
    assert list(ahead(iter(range(count)), most)) == [(i + 1) * 10 for i in range(count)]
    assert none_left()


def test_the_callers_thread_alone_reads() -> None:
    """Some iterators, such as a database cursor, may only be used in the thread that made them."""
    readers = set()

    def source() -> Iterator[int]:
        for number in range(20):
            readers.add(threading.get_ident())
            yield number

    assert len(list(ahead(source(), 8))) == 20
    assert readers == {threading.get_ident()}


def test_as_many_items_are_read_as_requested() -> None:
    read, computed = [], []

    def source() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    def compute(take, stopped) -> Iterator[int]:
        for result in one_each(take, stopped):
            time.sleep(0.02)
            computed.append(result)
            yield result

    taken = ahead(source(), 4, compute)
    for number in range(10):
        assert next(taken) == (number + 1) * 10
        assert len(read) <= number + 1 + 4
    assert ready(computed, len(read)), "what is read is computed, whether it is taken or not"
    assert len(read) > 11
    taken.close()
    assert none_left()


def test_when_the_next_result_is_ready_only_two_items_are_read() -> None:
    read, computed = [], []

    def source() -> Iterator[int]:
        for number in range(200):
            read.append(number)
            yield number
            time.sleep(0.005)  # long enough for the first result to arrive

    def compute(take, stopped) -> Iterator[int]:
        for result in one_each(take, stopped):
            computed.append(result)
            yield result

    taken = ahead(source(), 100, compute)
    next(taken)
    steps = []
    for _ in range(5):
        before = len(read)
        assert ready(computed, before)
        time.sleep(0.02)  # the last result is on its way to the caller
        next(taken)
        steps.append(len(read) - before)
    taken.close()
    assert steps == [2] * 5
    assert none_left()


@pytest.mark.parametrize("where", ["reading", "preparing", "computing"])
@pytest.mark.parametrize("error", [OSError("broken"), KeyboardInterrupt()])
def test_an_exception_comes_in_order(where: str, error: BaseException) -> None:
    def source() -> Iterator[int]:
        for number in range(9):
            if number == 3 and where == "reading":
                raise error
            yield number

    def prepare(number: int) -> int:
        if number == 3 and where == "preparing":
            raise error
        return number

    def compute(take, stopped) -> Iterator[int]:
        for done, result in enumerate(one_each(take, stopped)):
            if done == 3 and where == "computing":
                raise error
            yield result

    taken, got = run_ahead(source(), prepare, compute, 8), []
    with pytest.raises(type(error)) as caught:
        for result in taken:
            got.append(result)  # noqa: PERF402  what came before the failure is kept
    assert caught.value is error
    if where != "reading" or isinstance(error, Exception):
        assert got == [0, 10, 20]
    assert none_left()


@pytest.mark.parametrize("how", ["closed", "forgotten", "failed", "Ctrl-C"])
def test_no_computing_thread_is_left(how: str) -> None:
    taken = ahead(iter(range(10**9)))
    assert next(taken) == 10
    if how == "closed":
        taken.close()
    elif how == "forgotten":
        del taken
        gc.collect()
    else:
        error = KeyboardInterrupt if how == "Ctrl-C" else ValueError
        with pytest.raises(error):
            taken.throw(error())
    assert none_left()


@pytest.mark.timing
@pytest.mark.parametrize("how", ["closed", "Ctrl-C", "forgotten"])
def test_nobody_waits_for_the_device(how: str) -> None:
    """A caller that stops does not wait for a slow batch that is being computed."""
    release, began = threading.Event(), threading.Event()

    def compute(take, stopped) -> Iterator[int]:
        yield take(True)
        began.set()
        release.wait(30)
        yield take(True)

    taken = ahead(iter(range(9)), 4, compute)
    assert next(taken) == 1
    assert began.wait(10)
    start = time.monotonic()
    if how == "Ctrl-C":
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(taken)
    elif how == "closed":
        taken.close()
    else:
        del taken
        gc.collect()
    assert time.monotonic() - start < 5
    release.set()
    assert none_left()


FORGOTTEN = """
import sys, time
from lastword.runtime.threads import run_ahead

def compute(take, stopped):
    import torch
    while not stopped():
        item = take(True)
        torch.ones(1 << 20).clone()
        time.sleep(0.2)
        yield item

taken = run_ahead(iter(range(10**9)), int, compute, 8)
print(next(taken), flush=True)
began = time.monotonic()
"""


@pytest.mark.timing
def test_python_ends_with_results_that_nobody_took() -> None:
    command = [sys.executable, "-c", FORGOTTEN]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "0\n"
        began = time.monotonic()
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert time.monotonic() - began < 5, "it ends with the batch it is at"
