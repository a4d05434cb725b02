"""Several devices: one worker process per device, each with the whole model; a batch goes to the least loaded worker.

A worker is a fresh interpreter at the other end of a socket. There is no fork, and the caller's script needs no
`if __name__ == "__main__"`. This process has two threads per worker, one that sends and one that receives. If a worker
dies, its receiving thread notices at once, and everyone who waits for the worker gets a DeviceError. This module knows
nothing about texts.
"""

import os
import signal
import socket
import subprocess
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import RLock, Thread, current_thread, main_thread
from typing import Any

import torch

from lastword.batching.forest import Forest, plan_forests
from lastword.errors import DeviceError, LastwordWarning
from lastword.model.qwen3 import Model
from lastword.progress import progress_bar
from lastword.runtime.runner import (
    CLOSED,
    FutureWait,
    InProcess,
    ModelLoader,
    Runner,
    Task,
    Wait,
    WarmUpTask,
    check_process,
)
from lastword.runtime.serialization import pack, unpack
from lastword.weights import dtype_name

# Batches started per device before the first is waited for: one running, one queued, one to even out sizes.
_BATCHES_AHEAD = 3
_SECONDS_TO_END = 5
_START = "import sys; sys.path[:] = sys.argv[2:]; from lastword.runtime.worker import main; main(int(sys.argv[1]))"


class Pool:
    """A runner with one worker process per device.

    Args:
        load: called as `load(device=...)` in each worker; returns the model. `load` must be picklable.
        devices: devices of the same kind. This process's CPU threads are divided among the workers.

    Raises:
        Exception: whatever a worker raised while it loaded the model.
        DeviceError: a worker died.
    """

    ahead = True

    def __init__(self, load: Callable[..., Model], devices: Sequence[torch.device]) -> None:
        self.name = ", ".join(map(str, devices))
        self.depth = _BATCHES_AHEAD * len(devices)
        threads = max(1, torch.get_num_threads() // len(devices))
        self._owner = os.getpid()
        self._workers: list[_Worker] = []
        # Runs when the pool is garbage-collected, at the latest when the interpreter exits.
        self._stop = weakref.finalize(self, _end_all, self._workers, self._owner)
        try:
            for device in devices:
                # An interrupt between starting a process and recording it would leave the process behind.
                with _hold_ctrl_c():
                    self._workers.append(_Worker(device, pack((load, device, threads))))
            limits = [worker.ready.result() for worker in self._workers]
            self.batch_tokens: int = min(tokens for tokens, _ in limits)
            self.max_prompt_tokens: int = min(tokens for _, tokens in limits)
        except BaseException:  # also after Ctrl-C, leave no process behind
            self.close()
            raise

    def start(self, task: Task, forest: Forest) -> Wait:
        """Send a batch to the worker with the fewest tokens still to compute.

        Args:
            task: the task to run on the batch.
            forest: the batch.

        Returns:
            A function that waits for the task's tensor and returns it.

        Raises:
            DeviceError: a worker has died, the pool is closed, or this process is a fork of the one that made the pool
                and so lacks the pool's threads.
        """
        check_process(self.name, self._owner)
        for worker in self._workers:
            worker.check()
        worker = min(self._workers, key=lambda worker: worker.tokens)
        return FutureWait(worker.submit(pack((task, forest)), forest.tokens_computed))

    def warm_up(self, most_rows: int) -> None:
        check_process(self.name, self._owner)
        (nothing,) = plan_forests([[0]], 1)
        order = pack((WarmUpTask(most_rows), nothing))
        for answer in [worker.submit(order, 0) for worker in self._workers]:
            answer.result()

    def close(self) -> None:
        """End the worker processes. Whoever still waits for a batch gets a DeviceError."""
        self._stop()


def open_runner(load: ModelLoader, devices: Sequence[torch.device], *, show: bool | None) -> Runner:
    """Load the model into this process, or into one worker process per device if there are several.

    Args:
        load: loads the model.
        devices: the devices to load it on.
        show: whether to show a progress bar while layers are loaded into this process; see `progress_bar`.

    Raises:
        DeviceError: the model does not fit in a device's memory.
    """
    if devices[0].type == "cuda":
        _warn_of_unproved_kernels()
    try:
        if len(devices) > 1:
            return Pool(replace(load, tune_process=True), devices)
        layers = load.config.num_hidden_layers
        with progress_bar(layers, show=show, unit=" layers", what="Loading") as loaded:
            return InProcess(load(devices[0], loaded))
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "device",
            "the model does not fit in the free memory",
            got=f"{', '.join(map(str, devices))} and {dtype_name(load.dtype)} weights",
            expected="enough free memory for them",
            remedy="Pass dtype='bfloat16', quantize='fp8' or another device, or free memory on this one.",
        ) from error


@cache  # once per process
def _warn_of_unproved_kernels() -> None:
    """Warn that no run on a GPU is recorded; remove this function with the first results of `bench/gpu.sh prove`."""
    warnings.warn(
        LastwordWarning(
            "device",
            "the GPU kernels are compiled and checked in Triton's interpreter, but no run on a GPU is recorded yet",
            remedy="Compare the vectors of your model with transformers: lastword verify MODEL.",
        ),
        stacklevel=2,
    )


@contextmanager
def _hold_ctrl_c() -> Iterator[None]:
    """Delay Ctrl-C until the end of the `with` block. Outside the main thread, which gets all signals, do nothing."""
    if current_thread() is not main_thread():
        yield
        return
    came = list[int]()
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _end_all(workers: "list[_Worker]", owner: int) -> None:
    if os.getpid() != owner:
        return  # this process is a fork: the workers belong to its parent
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.end()
    for worker in workers:
        worker.join()


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, device: torch.device, order: bytes) -> None:
        self.device = device
        self._outbox: SimpleQueue[tuple[bytes, Future[Any], int] | None] = SimpleQueue()
        self.tokens = 0  # tokens sent and not computed yet
        self._waiting: deque[tuple[Future[Any], int]] = (
            deque()
        )  # orders sent and not answered, in order
        self._problem: DeviceError | None = None  # why no more orders are accepted
        self._lock = RLock()  # guards `tokens`, `_waiting` and `_problem`
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter
                [sys.executable, "-c", _START, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C in a terminal must reach only the caller
            )
            self._connection = Connection(ours.detach())
        self.ready = self.submit(order, 0)
        name = f"lastword-{device}"
        self._receiver = Thread(target=self._receive, name=name, daemon=True)
        self._sender = Thread(target=self._send, name=name, daemon=True)
        for thread in (self._receiver, self._sender):
            thread.start()

    def check(self) -> None:
        """If this worker accepts no more orders, raise a DeviceError that says why."""
        if self._problem is not None:
            raise copy(self._problem)

    def submit(self, order: bytes, tokens: int) -> "Future[Any]":
        """Queue an order. Orders and answers stay matched even if Ctrl-C interrupts this method.

        Args:
            order: the packed message.
            tokens: number of tokens that the order makes the worker compute.

        Returns:
            The future of the answer.

        Raises:
            DeviceError: the worker accepts no more orders, so that none follows the end mark that `stop` queues.
        """
        answer: Future[Any] = Future()
        with self._lock:
            self.check()
            self._outbox.put((order, answer, tokens))
            self.tokens += tokens
        return answer

    def stop(self) -> None:
        """Ask the process to end."""
        with self._lock:
            self._give_up(**CLOSED)
            self._outbox.put(None)
        self._process.terminate()

    def end(self) -> None:
        """Wait until the process has ended; kill it after a timeout."""
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def join(self) -> None:
        """Wait, up to a timeout, until both threads have ended: one inside PyTorch at exit would abort the process."""
        # The garbage collector may run this in one of the two threads, which cannot wait for itself.
        if current_thread() not in (self._receiver, self._sender):
            self._sender.join(_SECONDS_TO_END)

    def _send(self) -> None:
        while (item := self._outbox.get()) is not None:
            order, answer, tokens = item
            with self._lock:
                if self._problem is not None:
                    answer.set_exception(copy(self._problem))
                    continue
                self._waiting.append((answer, tokens))
            with suppress(OSError):  # the worker died, which `_receive` reports
                self._connection.send_bytes(order)
        self._receiver.join()  # ends when the process ends
        self._connection.close()

    def _receive(self) -> None:
        try:
            while True:
                given = unpack(self._connection.recv_bytes())
                with self._lock:
                    answer, tokens = self._waiting.popleft()
                    self.tokens -= tokens
                if isinstance(given, BaseException):
                    answer.set_exception(given)
                else:
                    answer.set_result(given)
        except (EOFError, OSError):
            self.end()
        except Exception:  # noqa: BLE001  an answer that this process cannot unpack
            self._process.kill()
        status = self._process.wait()
        how = f"exit status {status}"
        if status < 0:
            how = f"signal {-status} ({signal.strsignal(-status)})"
        self._give_up(
            "its worker process died",
            got=how,
            expected="a process that lives as long as the model",
            remedy="It was killed (by hand or for lack of memory), or its output above says why. Open the model again.",
        )

    def _give_up(self, what: str, *, got: str, expected: str, remedy: str) -> None:
        """Fail all waiting and future orders with this problem, or with an earlier one if there was one."""
        with self._lock:
            if self._problem is None:
                self._problem = DeviceError(
                    f"device {self.device}", what, got=got, expected=expected, remedy=remedy
                )
            while self._waiting:
                answer, tokens = self._waiting.popleft()
                self.tokens -= tokens
                answer.set_exception(copy(self._problem))
