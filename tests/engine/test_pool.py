"""Several devices: the vectors, order, counts and errors of one device, and no process left behind.

Workers on the CPU stand for GPUs: nothing here depends on the device but where the model is.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import worker_tasks

from lastword import DeviceError, Embedder, InputError, WeightsError
from lastword.forest import plan_forests
from lastword.model import Model
from lastword.pool import Pool
from lastword.report import Report
from lastword.weights import Checkpoint, read_config

CPU = torch.device("cpu")
WINDOW = 50
TEXTS = [f"text number {i % 97} " * (i % 5 + 1) for i in range(6 * WINDOW + 20)]
(FOREST,) = plan_forests([[1, 2, 3]], 10)


@pytest.fixture(scope="module")
def one(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu", max_batch_tokens=200)


@pytest.fixture(scope="module")
def two(tiny_checkpoint: Path) -> Embedder:
    with Embedder(tiny_checkpoint, device="cpu,cpu", max_batch_tokens=200) as embedder:
        yield embedder


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastword.windows._WINDOW_TEXTS", WINDOW)


def pool_of(embedder: Embedder) -> Pool:
    return embedder._encoder.runner


def pids(pool: Pool) -> list[int]:
    return [worker._process.pid for worker in pool._workers]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but nobody asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(processes: list[int], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, processes))


# The same as one device.


def test_vectors_counts_and_progress(small_windows: None, one: Embedder, two: Embedder) -> None:
    reports, vectors, told = [Report(), Report()], [], []
    for embedder, report in zip((one, two), reports, strict=True):
        options = embedder._options("query", None)
        windows = list(embedder._encoder.windows(TEXTS, options, report, told.append))
        assert [len(window) for window in windows] == [WINDOW] * 6 + [20]
        vectors.append(torch.cat(windows))
    assert torch.equal(*vectors), "equal batches give equal bits"
    assert sum(told) == 2 * len(TEXTS)
    for name in ("texts", "tokens_asked", "tokens_computed", "cut", "batches"):
        assert getattr(reports[0], name) == getattr(reports[1], name)
    assert reports[1].batches > 12
    assert two.plan(TEXTS, "query").batches == reports[1].batches


def test_both_workers_work(two: Embedder) -> None:
    pool = pool_of(two)
    answers = [pool.start(worker_tasks.pid, FOREST) for _ in range(4)]
    seen = [wait().tolist() for wait in answers]
    assert sorted({pid for pid, _ in seen}) == sorted(pids(pool))
    assert {threads for _, threads in seen} == {max(1, torch.get_num_threads() // 2)}
    assert [worker.tokens for worker in pool._workers] == [0, 0]


def test_the_worker_with_fewer_tokens_is_next(two: Embedder) -> None:
    pool = pool_of(two)
    (large,) = plan_forests([[1] * 500], 1000)
    waits = [pool.start(partial(worker_tasks.sleep, 0.5), large)]
    waits += [pool.start(worker_tasks.pid, FOREST) for _ in range(3)]
    assert len({int(wait()[0]) for wait in waits[1:]}) == 1
    waits[0]()


def test_looking_inside(one: Embedder, two: Embedder) -> None:
    assert torch.equal(two.hidden_states(TEXTS[:60]), one.hidden_states(TEXTS[:60]))
    assert two.hidden_states([], [0, -1]).shape == (0, 2, 64)
    assert two.token_ids(TEXTS[:9], "query") == one.token_ids(TEXTS[:9], "query")
    assert two.space_fingerprint() == one.space_fingerprint()
    assert two.run_fingerprint() == one.run_fingerprint()
    assert (two.device, two.devices) == (CPU, (CPU, CPU))


# Streams.


def test_a_stream_reads_and_starts_a_bounded_number_ahead(
    small_windows: None, two: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, under_way, most, read = pool_of(two), 0, 0, 0
    plain = pool.start

    def start(task, forest):
        nonlocal under_way, most
        wait, under_way = plain(task, forest), under_way + 1
        most = max(most, under_way)

        def done():
            nonlocal under_way
            vectors, under_way = wait(), under_way - 1
            return vectors

        return done

    def texts():
        nonlocal read
        for text in TEXTS * 3:
            read += 1
            yield text

    monkeypatch.setattr(pool, "start", start)
    furthest = max(read - n for n, _ in enumerate(two.encode_stream(texts())))
    assert 2 < most <= pool.depth + 1
    assert furthest <= (pool.depth + 3) * WINDOW


def test_calls_within_a_stream_and_from_other_threads(
    small_windows: None, one: Embedder, two: Embedder
) -> None:
    expected, got = one.encode(TEXTS), {}
    stream = two.encode_stream(TEXTS)
    first = next(stream)
    assert torch.equal(two.encode(TEXTS[7]), one.encode(TEXTS[7]))
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: two.encode(TEXTS)})) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    rest = list(stream)
    for thread in threads:
        thread.join()
    assert torch.equal(torch.stack([first, *rest]), expected)
    assert all(torch.equal(got[i], expected) for i in range(3))


def test_an_abandoned_stream_leaves_the_workers_usable(
    small_windows: None, one: Embedder, two: Embedder
) -> None:
    stream = two.encode_stream(TEXTS)
    next(stream)
    stream.close()
    assert torch.equal(two.encode(TEXTS[:9]), one.encode(TEXTS[:9]))


# Errors.


@pytest.mark.parametrize("bad", ["\udfff", None])
def test_a_bad_text_comes_after_the_windows_before_it(
    bad: str | None, small_windows: None, two: Embedder
) -> None:
    got = 0
    with pytest.raises(InputError, match="text 120: not") as caught:
        for _ in two.encode_stream([*TEXTS[:120], bad, *TEXTS[120:]]):
            got += 1
    assert (got, caught.value.index) == (100, 120)


def test_a_vector_that_is_not_finite_is_named(
    small_windows: None, two: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, broken = pool_of(two), 20
    plain, started = pool.start, []

    def start(task, forest):
        started.append(forest)
        if len(started) == broken:
            task = partial(worker_tasks.not_finite, 64)
        return plain(task, forest)

    monkeypatch.setattr(pool, "start", start)
    got = 0
    with pytest.raises(InputError, match="its vector is not finite") as caught:
        for _ in two.encode_stream(TEXTS):
            got += 1
    window, within = divmod(caught.value.index, WINDOW)
    assert within == started[broken - 1].texts.min()
    assert got == window * WINDOW > 0


@pytest.mark.parametrize(
    "error", [InputError("text 3: bad", 3), RuntimeError("no memory"), KeyError("x")]
)
def test_what_a_worker_raises(error: Exception, two: Embedder) -> None:
    wait = pool_of(two).start(partial(worker_tasks.fail, error), FOREST)
    with pytest.raises(type(error)) as caught:
        wait()
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "index", None) == getattr(error, "index", None)
    assert "worker_tasks.py" in caught.value.__notes__[0], "the worker's own traceback"


def test_a_worker_out_of_memory(
    one: Embedder, two: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, report = pool_of(two), Report()
    plain = pool.start
    monkeypatch.setattr(
        pool, "start", lambda task, forest: plain(partial(worker_tasks.small, 60, task), forest)
    )
    monkeypatch.setattr(two._encoder, "max_batch_tokens", 200)
    with pytest.warns(RuntimeWarning, match=r"^cpu, cpu: out of memory at \d+ tokens") as warned:
        vectors = torch.stack(list(two.encode_stream(TEXTS, report=report)))
    assert float((vectors - one.encode(TEXTS)).abs().max()) <= 1e-5
    assert (len(warned), report.texts) == (1, len(TEXTS))
    assert two.max_batch_tokens <= 100


def test_an_exception_that_cannot_be_sent(two: Embedder) -> None:
    with pytest.raises(RuntimeError, match="UnpicklableError: one two"):
        pool_of(two).start(worker_tasks.fail_unpicklable, FOREST)()


def test_a_task_that_the_worker_does_not_know(two: Embedder) -> None:
    module = type(sys)("only_here")
    sys.modules["only_here"] = module
    exec("def task(model, forest): ...", module.__dict__)
    with pytest.raises(ModuleNotFoundError, match="only_here"):
        pool_of(two).start(module.task, FOREST)()


def load(folder: Path):
    return partial(
        Model, Checkpoint(folder, read_config(folder)), read_config(folder), dtype=torch.float32
    )


def test_a_killed_worker_is_named_at_once(tiny_checkpoint: Path) -> None:
    pool = Pool(load(tiny_checkpoint), [CPU, CPU])
    first, second = pids(pool)
    waits = [pool.start(partial(worker_tasks.sleep, 0.5), FOREST)]
    waits += [pool.start(partial(worker_tasks.sleep, 60), FOREST)]
    began = time.monotonic()
    os.kill(second, signal.SIGKILL)
    assert waits[0]().tolist() == [0.5], "the other one goes on"
    message = r"device cpu: its worker process died; got signal 9 \(Killed\), expected"
    with pytest.raises(DeviceError, match=message):
        waits[1]()
    with pytest.raises(DeviceError, match=message):
        pool.start(worker_tasks.pid, FOREST)
    assert time.monotonic() - began < 10
    pool.close()
    assert all_end([first, second])


def test_a_worker_that_dies_of_its_batch(tiny_checkpoint: Path) -> None:
    pool = Pool(load(tiny_checkpoint), [CPU])
    waits = [pool.start(worker_tasks.die, FOREST) for _ in range(3)]
    for wait in waits:
        with pytest.raises(DeviceError, match="device cpu: its worker process died"):
            wait()
    pool.close()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (partial(worker_tasks.no_model, WeightsError("file: damaged")), WeightsError, "^file: dam"),
        (worker_tasks.no_process, DeviceError, "its worker process died; got exit status 3"),
    ],
)
def test_loading_that_fails(wrong, error: type, message: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(error, match=message):
        Pool(wrong, [CPU])
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(threading.enumerate()) - before


# Ends.


def test_a_closed_embedder_says_so(tiny_checkpoint: Path) -> None:
    alone, both = (
        Embedder(tiny_checkpoint, device=device, quantize="int8", max_batch_tokens=200)
        for device in ("cpu", "cpu,cpu")
    )
    processes = pids(pool_of(both))
    with both:
        assert all(map(alive, processes))
        assert torch.equal(both.encode(TEXTS[:50]), alone.encode(TEXTS[:50]))
    assert not any(map(alive, processes))
    with pytest.raises(DeviceError, match="device cpu: closed; expected an open Embedder"):
        both.encode("x")
    both.close()
    alone.close()


def test_a_forgotten_pool_ends(tiny_checkpoint: Path) -> None:
    pool = Pool(load(tiny_checkpoint), [CPU])
    (process,) = pids(pool)
    assert alive(process)
    del pool
    gc.collect()
    assert not alive(process)


SCRIPT = """
import os, sys, worker_tasks
from functools import partial
from lastword import Embedder
from lastword.forest import plan_forests
model = Embedder(sys.argv[1], device="cpu,cpu")  # no `if __name__ == "__main__"`
pool = model._encoder.runner
print(*(worker._process.pid for worker in pool._workers), flush=True)
if sys.argv[2] != "ends":
    (forest,) = plan_forests([[1, 2, 3]], 10)
    waits = [pool.start(partial(worker_tasks.sleep, 300), forest) for _ in range(4)]
    waits[0]()
"""


@pytest.mark.parametrize("how", ["ends", "SIGKILL"])
def test_workers_end_with_the_interpreter(how: str, tiny_checkpoint: Path) -> None:
    """At its end, and where it is killed in the middle of a batch."""
    tests = str(Path(worker_tasks.__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tiny_checkpoint, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": tests},
    ) as process:
        processes = [int(pid) for pid in process.stdout.readline().split()]
        if how == "SIGKILL" or len(processes) != 2:
            process.kill()
        err = process.communicate(timeout=60)[1]
    assert err == ""
    assert process.returncode == (0 if how == "ends" else -signal.SIGKILL)
    assert all_end(processes)
