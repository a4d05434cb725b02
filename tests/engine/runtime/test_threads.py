"""Work ahead of whoever takes it: same order, bounded, errors in their turn, and no thread left behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator

import pytest

from lastword.runtime import threads
from lastword.runtime.threads import map_ahead, read_ahead, run_ahead


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lastword-")]


def none_left(seconds: float = 10) -> bool:
    """Whether every thread ends soon: after Ctrl-C none is waited for."""
    deadline = time.monotonic() + seconds
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running()


def never(_: object) -> bool:
    return False


# One item is prepared in a thread while the one before it is used.


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
    assert running() == []


def test_small_items_take_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.ThreadPoolExecutor, "submit", None)
    assert list(map_ahead(len, iter(["a", "bb"]), at_once=lambda _: True)) == [1, 2]


@pytest.mark.parametrize("fails", ["reading", "work"])
def test_what_fails_comes_after_the_items_before_it(fails: str) -> None:
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
    assert running() == []


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


# Results are computed in a thread while those before them are used.


def results(count: int = 20, made: list[int] | None = None) -> Generator[int]:
    for number in range(count):
        if made is not None:
            made.append(number)
        yield number


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_the_same_results_in_order(depth: int) -> None:
    assert list(run_ahead(results(), depth)) == list(range(20))
    assert running() == []


def test_as_many_lie_ready_as_asked_for() -> None:
    made: list[int] = []
    taken = run_ahead(results(made=made), 4)
    assert next(taken) == 0
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 5, "the one taken and four that lie ready"
    taken.close()
    assert running() == []


@pytest.mark.parametrize("error", [OSError("broken"), KeyboardInterrupt()])
def test_an_exception_in_the_thread_comes_in_its_turn(error: BaseException) -> None:
    def broken() -> Generator[int]:
        yield from range(3)
        raise error

    taken = run_ahead(broken(), 8)
    assert [next(taken) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(taken)
    assert caught.value is error
    assert none_left()


@pytest.mark.parametrize("how", ["closed", "forgotten", "failed", "Ctrl-C"])
def test_no_computing_thread_is_left(how: str) -> None:
    ended = threading.Event()

    def endless() -> Generator[int]:
        try:
            while True:
                time.sleep(0.001)
                yield 1
        finally:
            ended.set()

    taken = run_ahead(endless(), 4)
    assert next(taken) == 1
    if how == "closed":
        taken.close()
    elif how == "forgotten":
        del taken
        gc.collect()
    else:
        error = KeyboardInterrupt if how == "Ctrl-C" else ValueError
        with pytest.raises(error):
            taken.throw(error())
    assert ended.wait(10), "what computes is closed, in its thread"
    assert none_left()


@pytest.mark.timing
def test_ctrl_c_does_not_wait_for_the_device() -> None:
    """A signal comes while the main thread waits for a result that takes long."""
    release = threading.Event()

    def slow() -> Generator[int]:
        yield 0
        release.wait(30)
        yield 1

    taken = run_ahead(slow(), 1)
    assert next(taken) == 0
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(taken)
    assert time.monotonic() - began < 10
    release.set()
    assert none_left()


FORGOTTEN = """
from lastword.runtime.threads import run_ahead

def numbers():
    while True:
        yield 1

taken = run_ahead(numbers(), 4)
print(next(taken))
"""


def test_python_ends_with_results_that_nobody_took() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
