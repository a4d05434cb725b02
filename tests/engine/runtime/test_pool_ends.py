"""Worker processes that end, are killed, closed or forgotten: waiting callers get an error, no process is left."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import worker_tasks
from helpers.messages import refusal
from helpers.worker_pools import CPU, FOREST, alive, all_end, linux, load, pids, pool_of

from lastword import DeviceError, Embedder, WeightsError
from lastword.runtime import pool as pool_module
from lastword.runtime.pool import Pool

pytestmark = pytest.mark.timing
TEXTS = [f"text number {i} " * (i % 5 + 1) for i in range(50)]


@linux
def test_a_killed_worker_is_named_at_once(tiny_checkpoint: Path) -> None:
    pool = Pool(load(tiny_checkpoint), [CPU, CPU])
    first, second = pids(pool)
    waits = [pool.start(partial(worker_tasks.sleep, 0.5), FOREST)]
    waits += [pool.start(partial(worker_tasks.sleep, 60), FOREST)]
    began = time.monotonic()
    os.kill(second, signal.SIGKILL)
    assert waits[0]().tolist() == [0.5], "the other one goes on"
    died = {"where": "device cpu", "what": "its worker process died", "got": "signal 9 (Killed)"}
    with refusal(DeviceError, **died):
        waits[1]()
    with refusal(DeviceError, **died):
        pool.start(worker_tasks.pid, FOREST)
    assert time.monotonic() - began < 10
    pool.close()
    assert all_end([first, second])


def test_a_worker_killed_by_its_batch(tiny_checkpoint: Path) -> None:
    pool = Pool(load(tiny_checkpoint), [CPU])
    waits = [pool.start(worker_tasks.die, FOREST) for _ in range(3)]
    for wait in waits:
        with refusal(DeviceError, where="device cpu", what="its worker process died"):
            wait()
    pool.close()


@pytest.mark.parametrize(
    ("wrong", "error", "parts"),
    [
        (
            partial(worker_tasks.no_model, WeightsError("file", "damaged")),
            WeightsError,
            {"where": "file", "what": "damaged"},
        ),
        (
            worker_tasks.no_process,
            DeviceError,
            {"what": "its worker process died", "got": "exit status 3"},
        ),
    ],
)
def test_loading_that_fails(wrong, error: type, parts: dict[str, str]) -> None:
    before = set(threading.enumerate())
    with refusal(error, **parts):
        Pool(wrong, [CPU])
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(threading.enumerate()) - before


@linux
def test_ctrl_c_while_a_process_is_started(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = list[int]()

    class Interrupted(subprocess.Popen):
        """Ctrl-C arrives when the second process has started but is not recorded yet."""

        def __init__(self, *args, **settings) -> None:
            super().__init__(*args, **settings)
            started.append(self.pid)
            if len(started) == 2:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pool_module.subprocess, "Popen", Interrupted)
    # A background job may inherit an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Pool(load(tiny_checkpoint), [CPU, CPU])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 2
    assert not any(map(alive, started))


@linux
def test_a_closed_embedder_says_so(one_thread: None, tiny_checkpoint: Path) -> None:
    alone, both = (
        Embedder(tiny_checkpoint, device=device, quantize="int8", max_batch_tokens=200)
        for device in ("cpu", "cpu,cpu")
    )
    processes = pids(pool_of(both))
    with both:
        assert all(map(alive, processes))
        assert torch.equal(both.encode(TEXTS), alone.encode(TEXTS))
    assert not any(map(alive, processes))
    with refusal(DeviceError, where="device cpu", what="closed", got="a closed model"):
        both.encode("x")
    both.close()
    alone.close()


def test_closing_while_a_batch_is_handed_over(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate a race with another thread: a worker is chosen, but has ended when the order arrives."""
    pool = Pool(load(tiny_checkpoint), [CPU])
    pack = pool_module.pack
    monkeypatch.setattr(pool_module, "pack", lambda order: pool.close() or pack(order))
    with refusal(DeviceError, where="device cpu", what="closed"):
        pool.start(worker_tasks.pid, FOREST)


def test_closing_leaves_no_socket(tiny_checkpoint: Path) -> None:
    pool = Pool(load(tiny_checkpoint), [CPU, CPU])
    connections = [worker._connection for worker in pool._workers]
    pool.close()
    deadline = time.monotonic() + 10
    while not all(each.closed for each in connections) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(each.closed for each in connections)


def test_a_fork_of_the_caller_is_refused(tiny_checkpoint: Path) -> None:
    pool = Pool(load(tiny_checkpoint), [CPU])
    with warnings.catch_warnings(action="ignore"):  # since Python 3.12, about threads and forks
        child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            pool.start(worker_tasks.pid, FOREST)()
        except DeviceError as error:
            os._exit(0 if "device cpu: belongs to another process" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.start(worker_tasks.pid, FOREST)()[0] == pids(pool)[0]
    pool.close()


@linux
def test_a_forgotten_pool_ends(tiny_checkpoint: Path) -> None:
    pool = Pool(load(tiny_checkpoint), [CPU])
    (process,) = pids(pool)
    assert alive(process)
    del pool
    gc.collect()
    assert not alive(process)


SCRIPT = """
import os, sys
from helpers import worker_tasks
from functools import partial
from lastword import Embedder
from lastword.batching.forest import plan_forests
model = Embedder(sys.argv[1], device="cpu,cpu")  # no `if __name__ == "__main__"`
pool = model.loop.runner
print(*(worker._process.pid for worker in pool._workers), flush=True)
if sys.argv[2] != "ends":
    (forest,) = plan_forests([[1, 2, 3]], 10)
    waits = [pool.start(partial(worker_tasks.sleep, 300), forest) for _ in range(4)]
    waits[0]()
"""


@linux
@pytest.mark.parametrize("how", ["ends", "SIGKILL"])
def test_workers_end_with_the_interpreter(how: str, tiny_checkpoint: Path) -> None:
    """Both when it ends and when it is killed in the middle of a batch."""
    tests = str(Path(worker_tasks.__file__).parents[1])
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


UNPACKING = """
import sys, time
from helpers import worker_tasks
from functools import partial
import torch
from lastword.runtime import pool as pool_module
from lastword.batching.forest import plan_forests

unpack = pool_module.unpack

def slowly(data):
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        torch.ones(1 << 20).clone()
    return unpack(data)

from lastword import Embedder
model = Embedder(sys.argv[1], device="cpu,cpu")
pool_module.unpack = slowly
(forest,) = plan_forests([[1, 2, 3]], 10)
waits = [model.loop.runner.start(worker_tasks.pid, forest) for _ in range(6)]
time.sleep(0.5)  # the real `unpack` took the first answers; the others are being unpacked
sys.exit(3)
"""


@linux
def test_answers_that_nobody_waits_for_do_not_abort_the_exit(tiny_checkpoint: Path) -> None:
    """A thread inside PyTorch that requests the GIL after the interpreter has exited would abort the process."""
    tests = str(Path(worker_tasks.__file__).parents[1])
    command = [sys.executable, "-c", UNPACKING, tiny_checkpoint]
    env = {**os.environ, "PYTHONPATH": tests}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert (done.returncode, done.stderr) == (3, "")
