"""Do the units of a job on a Ray cluster: one model per GPU or, without GPUs, per N cores.

Each model is in a Ray actor, here called a worker. Ray places the workers, and starts one again, on another machine if
need be, when its process or machine is lost. A free worker is given the next unit; a unit that was lost with its
worker, or that failed, goes to the next free one. The job's folder is the only state: a unit that is done twice gives
the same bytes, and whoever continues the job, with or without Ray, finds what is missing. A worker opens its model once
and does a unit as a local run does it (`Job.run`, `UnitWriter.write_unit`).

This module must not be called ray.py: a script that is run in this folder would import it in place of Ray.
"""

import argparse
import itertools
import logging
import os
import signal
import socket
import threading
import traceback
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lastword.bulk import command
from lastword.bulk.job import Finished, Job, UnitResult
from lastword.bulk.plan import NAME, Plan, Unit
from lastword.cli import console, options, read
from lastword.errors import (
    DeviceError,
    InputError,
    LastwordError,
    LastwordWarning,
    count,
    require_extra,
)

RETRIES = 3  # of a unit, and of the opening of a model; Ray's own default for tasks
_WAIT_S = 0.5  # seconds; a call of Ray must not delay Ctrl-C for longer
_REACH_S = 10.0
_ROUNDS = 10  # number of such waits between two looks at the cluster's machines
_LONG_ROUNDS = 60  # number of such waits after which a line says what the command is waiting for
_FAILURES = 3  # failed units in a row after which a worker is left out, if another one works


@dataclass(slots=True)
class Answer:
    """What a worker sends to the driver.

    Args:
        host: the worker's machine; "" in the driver's own answer for a worker that was lost.
        error: what went wrong, if anything did.
        result: the unit's result; None if it was done before, or not at all.
        seconds: the time that the unit took.
        claimed: whether another process is working on the unit.
        notices: lines for the user.
    """

    host: str = field(default_factory=socket.gethostname)
    error: LastwordError | None = None
    result: UnitResult | None = None
    seconds: float = 0.0
    claimed: bool = False
    notices: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker as the driver sees it: its actor, its machine as far as known, and how many units in a row failed."""

    actor: Any
    host: str = ""
    failures: int = 0


class Worker:
    """A process on the cluster that opens the model once, and does one unit per call.

    Args:
        args: the command's arguments.
        home: the driver's current folder, to which paths are relative.
    """

    def __init__(self, args: argparse.Namespace, home: str) -> None:
        self._args, self._home = args, home
        self._opened: tuple[Job, command.UnitWriter] | None = None

    def open(self, inputs: Sequence[read.Source]) -> Answer:
        """Open the model; make the job's plan, or check that a unit done here has the bytes that the plan asks for."""
        with _answering() as answer:
            try:
                os.chdir(self._home)
            except OSError as error:
                what = f"cannot be entered on {answer.host} ({error.strerror or error})"
                remedy = "Files and folders must have the same paths on every machine."
                raise InputError(self._home, what, remedy=remedy) from error
            embedder = options.open_embedder(self._args)
            self._opened = command.prepare(self._args, Path(self._args.output), inputs, embedder)
            answer.notices += embedder.notices
        return answer

    def do(self, number: int, *, again: bool) -> Answer:
        """Do a unit; with `again`, it was tried before, and a process that was lost may still hold its claim."""
        if self._opened is None:  # Ray has started this process in place of a lost one
            answer = self.open(())
            if self._opened is None:
                return answer
        job, writer = self._opened
        with _answering() as answer:

            def finished(_: Unit, result: UnitResult, seconds: float) -> None:
                answer.result, answer.seconds = result, seconds

            unit = job.plan.units[number]
            claimed = job.run([unit], writer.write_unit, finished, ignore_claims=again)
            answer.claimed = bool(claimed)
        return answer


@contextmanager
def _answering() -> Iterator[Answer]:
    """Yield an answer, which receives the warnings and the error of the `with` block."""
    answer = Answer()
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield answer
        except LastwordError as error:
            answer.error = error
        except Exception as error:  # noqa: BLE001  the driver says which unit it was
            traceback.print_exc()  # into Ray's log of this worker
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            answer.error = DeviceError(answer.host, what, remedy="Ray's log has the details.")
    ours = [each.message for each in caught if isinstance(each.message, LastwordWarning)]
    answer.notices += map(options.in_option_words, ours)


def run(args: argparse.Namespace, folder: Path, inputs: Sequence[read.Source]) -> int:
    """Begin or continue a job on a Ray cluster; return the exit status.

    Raises:
        InputError: the cluster cannot be used, or a unit has failed on every attempt.
        MissingPackageError: Ray is not installed.
    """
    with _connected(args.ray) as ray:
        cluster = Cluster(ray, args, folder)
        console.say_all(cluster.open_first(inputs), quiet=args.quiet)
        status = command.run_units(args, Job(folder, Plan.load(folder)), cluster.do_all)
    if cluster.failed:
        raise InputError(
            str(folder),
            f"{count(len(cluster.failed), 'unit')} failed on each of {1 + RETRIES} attempts",
            remedy="To retry, run the command again.",
        )
    return status


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster during the `with` block; yield the module `ray`.

    Raises:
        InputError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here sends nothing
    with require_extra("ray", "ray", "--ray"):
        import ray
    _reach(address)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        # What workers print stays in Ray's log files.
        ray.init(address or None, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        what = f"cannot connect to a Ray cluster ({reason})"
        raise InputError("--ray", what, got=address or None) from error
    if threading.current_thread() is threading.main_thread():
        # With Ray's own handler of SIGTERM the command would end without a message.
        for number, handler in handlers:
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()  # ends the workers too


def _reach(address: str) -> None:
    """Check that something answers at HOST:PORT; Ray itself would try for minutes.

    Raises:
        InputError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        what = f"no Ray cluster can be reached ({getattr(error, 'strerror', None) or error})"
        remedy = "Name the address that `ray status` prints on the head."
        raise InputError("--ray", what, got=address, remedy=remedy) from error


class Cluster:
    """The workers of a run, as the driver sees them.

    The attribute `failed` lists the units that failed on every attempt.

    Args:
        ray: the module `ray`, connected.
        args: the command's arguments.
        folder: the job's folder.

    Raises:
        InputError: no machine of the cluster has what a worker needs.
    """

    def __init__(self, ray: Any, args: argparse.Namespace, folder: Path) -> None:
        self._ray = ray
        self.failed: list[Unit] = []
        self._needs = _needs(self._machines(), args, folder)
        sent = {name: value for name, value in vars(args).items() if name != "console"}
        sent |= {"quiet": True, "device": "cuda" if self._needs["GPU"] else "cpu"}
        self._args = argparse.Namespace(**sent)
        self._stop, self._quiet = args.on_error == "stop", args.quiet
        # Each call of a worker that has not ended: the worker, and its unit (None: it opens the model).
        self._calls: dict[Any, tuple[_Seat, Unit | None]] = {}
        self._free: list[_Seat] = []
        self._unusable = 0  # workers that are left out
        self._waiting: deque[Unit] = deque()
        # The worker and the machine of each failed attempt, by unit.
        self._failed_on: defaultdict[int, list[tuple[_Seat, str]]] = defaultdict(list)
        self._said: set[str] = set()  # notices that were printed

    def _machines(self) -> list[dict[str, float]]:
        """Return the resources of each machine."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def open_first(self, inputs: Sequence[read.Source]) -> list[str]:
        """Start a worker that makes or checks the job's plan; return its notices.

        Raises:
            LastwordError: as raised in the worker.
        """
        call = self._start(inputs)
        worker, _ = self._calls[call]
        for waited in itertools.count(1):
            if self._ray.wait([call], timeout=_WAIT_S)[0]:
                break
            if waited == _LONG_ROUNDS:
                line = "waiting for the first worker, which needs free cores and opens the model"
                console.say_all([line], quiet=self._quiet)
        del self._calls[call]
        answer = self._answer(call)
        if answer.error is not None:
            raise answer.error
        worker.host = answer.host
        self._free.append(worker)
        return answer.notices

    def _start(self, inputs: Sequence[read.Source] = ()) -> Any:
        """Start a worker, and return its call of `open`."""
        remote = self._ray.remote(Worker).options(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs["GPU"],
            max_restarts=-1,
            scheduling_strategy="SPREAD",
            # A local run takes its number of threads from here too.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._needs["CPU"])}},
        )
        return self._open(_Seat(remote.remote(self._args, str(Path.cwd()))), inputs)

    def _open(self, worker: _Seat, inputs: Sequence[read.Source] = ()) -> Any:
        call = worker.actor.open.options(max_task_retries=RETRIES).remote(list(inputs))
        self._calls[call] = worker, None
        return call

    def _answer(self, call: Any) -> Answer:
        """Return the answer of a call that has ended; for a lost worker, an answer with an error."""
        try:
            answer: Answer = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            what = f"a worker was lost ({reason})"
            return Answer(host="", error=DeviceError("Ray", what))
        return answer

    def do_all(
        self, units: Sequence[Unit], finished: Finished, advance: command.Advance
    ) -> list[Unit]:
        """Do units on the cluster; return those that other processes are working on.

        Raises:
            LastwordError: a unit failed with --on-error stop, or no worker is usable.
        """
        self._waiting.extend(units)
        claimed: list[Unit] = []
        rounds = 0
        while self._waiting or any(unit is not None for _, unit in self._calls.values()):
            if rounds % _ROUNDS == 0:
                self._start_more()
            rounds += 1
            self._give_out()
            ended, _ = self._ray.wait([*self._calls], timeout=_WAIT_S)
            for call in ended:
                worker, unit = self._calls.pop(call)
                answer = self._answer(call)
                if unit is None:
                    self._opened(worker, answer)
                elif self._done(worker, unit, answer):
                    advance(unit.num_bytes)
                    if answer.result is not None:
                        finished(unit, answer.result, answer.seconds)
                    if answer.claimed:
                        claimed.append(unit)
        return claimed

    def _start_more(self) -> None:
        """Start more workers, as far as machines have room for them and there are units for them to do."""
        fitting = sum(_room(each, self._needs) for each in self._machines())
        busy = sum(unit is not None for _, unit in self._calls.values())
        wanted = min(fitting - self._unusable, len(self._waiting) + busy)
        for _ in range(wanted - len(self._calls) - len(self._free)):
            self._start()

    def _give_out(self) -> None:
        """Give units to the free workers."""
        for _ in range(len(self._waiting)):
            if not self._free:
                return
            unit = self._waiting.popleft()
            worker = self._choose(self._failed_on[unit.number])
            if worker is None:
                self._waiting.append(unit)
                continue
            self._free.remove(worker)
            call = worker.actor.do.remote(unit.number, again=bool(self._failed_on[unit.number]))
            self._calls[call] = worker, unit

    def _choose(self, failed: Sequence[tuple[_Seat, str]]) -> _Seat | None:
        """Return a free worker, or None if the unit should wait for one on which it has not failed yet.

        A worker on a broken machine fails at once and is free most of the time, as are the others there; they must not
        get all attempts. So a worker on another machine comes first, then another worker on the same one.
        """
        workers, hosts = {worker for worker, _ in failed}, {host for _, host in failed}
        busy = [worker for worker, unit in self._calls.values() if unit is not None]
        rules: tuple[Callable[[_Seat], bool], ...] = (
            lambda each: each.host in hosts,
            lambda each: each in workers,
        )
        for tried in rules:
            fresh = next((worker for worker in self._free if not tried(worker)), None)
            if fresh is not None or not all(map(tried, busy)):
                return fresh
        return self._free[0]

    def _opened(self, worker: _Seat, answer: Answer) -> None:
        """Take note of a worker that has opened its model, or could not open it.

        Raises:
            LastwordError: no other worker is left.
        """
        if answer.error is None:
            worker.host = answer.host
            self._free.append(worker)
            return
        if not self._calls and not self._free:
            self._ray.kill(worker.actor)
            raise answer.error
        self._leave_out(worker, answer.host or "a worker", answer.error)

    def _leave_out(self, worker: _Seat, name: str, error: LastwordError) -> None:
        """End a worker, and start no other in its place."""
        self._unusable += 1
        self._ray.kill(worker.actor)
        console.say(f"{name} is left out: {options.in_option_words(error)}")

    def _works_elsewhere(self, worker: _Seat) -> bool:
        """Return whether another worker has failed fewer than `_FAILURES` times in a row."""
        busy = (each for each, unit in self._calls.values() if unit is not None)
        others = (each for each in (*self._free, *busy) if each is not worker)
        return any(each.failures < _FAILURES for each in others)

    def _done(self, worker: _Seat, unit: Unit, answer: Answer) -> bool:
        """Take note of a unit's end; return whether it is done. If not, the unit is queued again or has failed.

        Raises:
            LastwordError: the unit failed, though its worker was not lost, and --on-error is stop.
        """
        new = [notice for notice in answer.notices if notice not in self._said]
        self._said.update(new)
        console.say_all(new, quiet=self._quiet)
        error, lost = answer.error, not answer.host
        worker.host = answer.host or worker.host
        worker.failures = 0 if error is None else worker.failures + 1
        if error is None:
            self._free.append(worker)
            return True
        error.where = f"unit {unit.number}: {error.where}"
        if self._stop and not lost:
            raise error
        if worker.failures >= _FAILURES and self._works_elsewhere(worker):
            name = f"a worker on {worker.host}, on which {_FAILURES} units in a row failed,"
            self._leave_out(worker, name, error)
        elif lost:  # Ray starts it again
            self._open(worker)
        else:
            self._free.append(worker)
        self._failed_on[unit.number].append((worker, worker.host))
        if len(self._failed_on[unit.number]) <= RETRIES:
            self._waiting.append(unit)
        else:
            self.failed.append(unit)
            console.say(options.in_option_words(error))
        return False


def _room(machine: Mapping[str, float], needs: Mapping[str, int]) -> int:
    """Return how many workers fit on a machine with these resources."""
    return min(int(machine.get(name, 0) // number) for name, number in needs.items() if number)


def _needs(
    machines: Sequence[Mapping[str, float]], args: argparse.Namespace, folder: Path
) -> dict[str, int]:
    """Return the numbers of CPUs and GPUs of a worker.

    Raises:
        InputError: no machine has as many.
    """
    with_cores = [each for each in machines if each.get("CPU", 0) >= 1]
    with_gpu = [each for each in with_cores if each.get("GPU", 0) >= 1]
    on_gpu = args.device == "cuda" or (args.device is None and bool(with_gpu))
    planned: int | None = None
    if (folder / NAME).exists():
        planned = Plan.load(folder).settings["threads"]
    shares = [
        each["CPU"] // (each["GPU"] if on_gpu else 1)
        for each in (with_gpu if on_gpu else with_cores)
    ]
    cores = args.cores_per_model or planned or max(1, int(min(shares, default=1)))
    needs = {"CPU": cores, "GPU": int(on_gpu)}
    if not any(_room(each, needs) for each in machines):
        wanted = f"{count(cores, 'core')}{' and a GPU' if on_gpu else ''}"
        most = int(max((each.get("CPU", 0) for each in machines), default=0))
        raise InputError(
            "--ray",
            f"no machine of the cluster has {wanted} for a model",
            got=f"at most {count(most, 'core')}, {count(len(with_gpu), 'machine')} with a GPU",
            remedy="Give another --cores-per-model or --device.",
        )
    return needs
