"""The driver's side of --ray with a stand-in for Ray, and the options; `test_ray.py` has real clusters."""

import argparse
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lastword.bulk.job import UnitResult
from lastword.bulk.plan import Plan, Unit
from lastword.bulk.ray_workers import Answer, Cluster
from lastword.cli.main import main
from lastword.errors import InputError, LastwordError

Act = Callable[[int, str, tuple[Any, ...], bool], Answer]


class RayError(Exception):
    """As ray.exceptions.RayError: a worker or its machine was lost."""


class Remote:
    """What `ray.remote` returns, a worker, and a method of a worker: each has `options` and `remote`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def options(self, **chosen: Any) -> "Remote":
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


class FakeRay:
    """Machines, and workers that do as `act(worker, method, arguments, again)` says; calls end in order."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, machines: Sequence[dict[str, float]], act: Act) -> None:
        self.machines, self.act = list(machines), act
        self.started = self.slow = 0
        self.killed: list[int] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in self.machines]

    def remote(self, kind: type) -> Remote:
        return Remote(self._start)

    def _start(self, args: argparse.Namespace, home: str) -> SimpleNamespace:
        number = self.started
        self.started += 1

        def method(name: str) -> Remote:
            return Remote(lambda *given, again=False: lambda: self.act(number, name, given, again))

        return SimpleNamespace(number=number, open=method("open"), do=method("do"))

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert calls, "Ray refuses an empty list"
        self.slow -= 1
        return ([], calls) if self.slow >= 0 else (calls[:1], calls[1:])

    def get(self, call: Callable[[], Answer]) -> Answer:
        return call()

    def kill(self, worker: Any) -> None:
        self.killed.append(worker.number)


UNITS = [Unit(number, ()) for number in range(30)]
ONE_CORE = {"CPU": 1.0}


def arguments(**changed: Any) -> argparse.Namespace:
    usual = {"device": None, "cores_per_model": 1, "on_error": "skip", "quiet": False}
    return argparse.Namespace(**usual | changed)


def do_all(ray: FakeRay, folder: Path, **changed: Any) -> tuple[Cluster, list[int], list[Unit]]:
    """Run all units; return the cluster, the numbers of the units that were done, and the claimed ones."""
    cluster = Cluster(ray, arguments(**changed), folder)
    cluster.open_first(())
    done: list[int] = []
    claimed = cluster.do_all(UNITS, lambda unit, *_: done.append(unit.number), lambda _: None)
    return cluster, done, claimed


def well(worker: int, method: str, given: tuple[Any, ...], again: bool) -> Answer:
    return Answer(result=UnitResult() if method == "do" else None)


def test_every_unit_is_done_once(tmp_path: Path) -> None:
    used: set[int] = set()

    def act(worker: int, *call: Any) -> Answer:
        used.add(worker)
        return well(worker, *call)

    ray = FakeRay([ONE_CORE, {"CPU": 2.0}, {"GPU": 1.0}], act)
    cluster, done, claimed = do_all(ray, tmp_path)
    assert sorted(done) == [unit.number for unit in UNITS]
    assert (claimed, cluster.failed, ray.started, used) == ([], [], 3, {0, 1, 2})


@pytest.mark.parametrize("how", ["lost", "error"])
@pytest.mark.parametrize("times", [3, 4])
def test_a_unit_is_tried_four_times(
    how: str, times: int, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    calls: list[tuple[str, bool]] = []

    def act(worker: int, method: str, given: tuple[Any, ...], again: bool) -> Answer:
        if given != (5,) and not (method == "open" and calls):
            return well(worker, method, given, again)
        calls.append((method, again))
        if method == "open" or sum(name == "do" for name, _ in calls) > times:
            return well(worker, method, given, again)
        if how == "lost":
            raise RayError("The worker died.\nDetails.")
        return Answer(error=InputError("a.jsonl", "cannot be read"))

    ray = FakeRay([ONE_CORE], act)
    cluster, done, _ = do_all(ray, tmp_path)
    attempts = [again for name, again in calls if name == "do"]
    assert attempts == [False, True, True, True]
    assert sum(name == "open" for name, _ in calls) == (3 if how == "lost" else 0)
    said = capfd.readouterr().err
    if times == 3:
        assert sorted(done) == [unit.number for unit in UNITS]
        assert said == ""
    else:
        assert cluster.failed == [UNITS[5]]
        assert len(done) == len(UNITS) - 1
        expected = {
            "lost": "lastword: unit 5: Ray: a worker was lost (The worker died. Details.).\n",
            "error": "lastword: unit 5: a.jsonl: cannot be read.\n",
        }
        assert said == expected[how]


def test_a_broken_machine_does_not_get_all_attempts(tmp_path: Path) -> None:
    calls = list[int]()

    def act(worker: int, method: str, given: tuple[Any, ...], again: bool) -> Answer:
        calls.append(worker)
        if worker == 1 and method == "do":
            return Answer(error=InputError("disk", "is broken"))
        return well(worker, method, given, again)

    cluster, done, _ = do_all(FakeRay([ONE_CORE, ONE_CORE], act), tmp_path)
    assert (len(done), cluster.failed) == (len(UNITS), [])
    assert calls.count(1) > 2


@pytest.mark.parametrize("how", ["lost", "error"])
def test_a_broken_machine_with_many_workers_fails_no_unit(
    how: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    broken = range(1, 7)
    opened: list[int] = []

    def act(worker: int, method: str, given: tuple[Any, ...], again: bool) -> Answer:
        if method == "open":
            opened.append(worker)
        elif worker in broken:
            if how == "lost":
                raise RayError("The worker died.")
            return Answer(host="bad", error=InputError("disk", "is broken"))
        answer = well(worker, method, given, again)
        answer.host = "bad" if worker in broken else "good"
        return answer

    ray = FakeRay([ONE_CORE, {"CPU": 6.0}], act)
    cluster, done, _ = do_all(ray, tmp_path)
    assert (len(done), cluster.failed) == (len(UNITS), [])
    assert ray.started == 7, "no worker is started in the place of one that is left out"
    said = capfd.readouterr().err
    assert said.count(
        "a worker on bad, on which 3 units in a row failed, is left out: unit "
    ) == len(ray.killed)
    assert set(ray.killed) <= set(broken)
    assert ray.killed


def test_the_last_worker_is_not_left_out(tmp_path: Path) -> None:
    def act(worker: int, method: str, *call: Any) -> Answer:
        if method == "do":
            return Answer(error=InputError("disk", "is full"))
        return well(worker, method, *call)

    ray = FakeRay([ONE_CORE, ONE_CORE], act)
    cluster, done, _ = do_all(ray, tmp_path)
    assert (len(done), len(cluster.failed)) == (0, len(UNITS))
    assert len(ray.killed) <= 1


def test_the_time_of_a_unit_is_that_of_its_worker(tmp_path: Path) -> None:
    def act(worker: int, method: str, given: tuple[Any, ...], again: bool) -> Answer:
        return Answer(result=UnitResult() if method == "do" else None, seconds=7.5)

    cluster = Cluster(FakeRay([ONE_CORE], act), arguments(), tmp_path)
    cluster.open_first(())
    seconds: list[float] = []
    cluster.do_all(UNITS[:2], lambda _, __, took: seconds.append(took), lambda _: None)
    assert seconds == [7.5, 7.5]


def test_a_long_wait_is_announced(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    for rounds, lines in ((59, 0), (60, 1), (100, 1)):
        ray = FakeRay([ONE_CORE], well)
        ray.slow = rounds
        do_all(ray, tmp_path)
        assert capfd.readouterr().err.count("waiting for the first worker") == lines


def test_on_error_stop(tmp_path: Path) -> None:
    def act(worker: int, method: str, given: tuple[Any, ...], again: bool) -> Answer:
        if given == (5,):
            return Answer(error=InputError("a.jsonl:7", "is empty"))
        return well(worker, method, given, again)

    with pytest.raises(InputError, match=r"unit 5: a\.jsonl:7: is empty"):
        do_all(FakeRay([ONE_CORE], act), tmp_path, on_error="stop")


def test_a_machine_that_cannot_open_the_model_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    def act(worker: int, method: str, given: tuple[Any, ...], again: bool) -> Answer:
        if worker == 1:
            return Answer(host="far", error=InputError("model", "no such folder"))
        return well(worker, method, given, again)

    ray = FakeRay([ONE_CORE, ONE_CORE], act)
    _, done, _ = do_all(ray, tmp_path)
    assert len(done) == len(UNITS)
    assert (ray.started, ray.killed) == (2, [1])
    assert capfd.readouterr().err == "lastword: far is left out: model: no such folder.\n"


def test_no_machine_can_open_the_model(tmp_path: Path) -> None:
    error = InputError("model", "no such folder")
    with pytest.raises(LastwordError, match="no such folder"):
        do_all(FakeRay([ONE_CORE], lambda *_: Answer(error=error)), tmp_path)


def test_a_machine_that_joins_is_used(tmp_path: Path) -> None:
    def act(worker: int, *call: Any) -> Answer:
        ray.machines = [ONE_CORE, ONE_CORE]
        return well(worker, *call)

    ray = FakeRay([ONE_CORE], act)
    _, done, _ = do_all(ray, tmp_path)
    assert (len(done), ray.started) == (len(UNITS), 2)


def test_units_of_other_processes_and_notices(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    def act(worker: int, method: str, given: tuple[Any, ...], again: bool) -> Answer:
        if given == (5,):
            return Answer(claimed=True)
        return Answer(result=None if given == (6,) else UnitResult(), notices=["less memory"])

    _, done, claimed = do_all(FakeRay([ONE_CORE], act), tmp_path)
    assert claimed == [UNITS[5]]
    assert len(done) == len(UNITS) - 2, "unit 6 had been done before"
    assert capfd.readouterr().err == "lastword: less memory\n"


BIG = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("machines", "options", "needs"),
    [
        ([ONE_CORE, {"CPU": 8.0}], {}, {"CPU": 1, "GPU": 0}),
        ([{"CPU": 0.0}, {"CPU": 4.0}, {"CPU": 8.0}], {}, {"CPU": 4, "GPU": 0}),
        ([{"CPU": 8.0}], {"cores_per_model": 3}, {"CPU": 3, "GPU": 0}),
        ([ONE_CORE, BIG], {}, {"CPU": 8, "GPU": 1}),
        ([ONE_CORE, BIG], {"device": "cpu"}, {"CPU": 1, "GPU": 0}),
        ([BIG], {"device": "cuda", "cores_per_model": 2}, {"CPU": 2, "GPU": 1}),
        ([ONE_CORE], {"device": "cuda"}, "1 core and a GPU for a model; got at most 1 core, 0 mach"),
        ([ONE_CORE], {"cores_per_model": 2}, "no machine of the cluster has 2 cores for a model"),
        ([], {}, "no machine of the cluster has 1 core for a model; got at most 0 cores"),
    ],
)  # fmt: skip
def test_what_a_worker_needs(
    machines: list[dict[str, float]], options: dict[str, Any], needs: Any, tmp_path: Path
) -> None:
    given = arguments(**{"cores_per_model": None, **options})
    if isinstance(needs, str):
        with pytest.raises(InputError) as caught:
            Cluster(FakeRay(machines, well), given, tmp_path)
        assert needs in str(caught.value)
    else:
        assert Cluster(FakeRay(machines, well), given, tmp_path)._needs == needs


def test_a_model_gets_the_threads_of_the_plan(tmp_path: Path) -> None:
    Plan({"threads": 2}, [], []).save(tmp_path)
    ray = FakeRay([{"CPU": 8.0}], well)
    assert Cluster(ray, arguments(cores_per_model=None), tmp_path)._needs == {"CPU": 2, "GPU": 0}


def embed(*words: str, out: str = "out/") -> int:
    return main(["embed", "notes.txt", *words, "-o", out])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("notes.txt").write_text("one\ntwo\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ray", "notes.txt"), "--ray: is not the address of a Ray cluster; got 'notes.txt'"),
        (("--ray", "ray://a:1"), "--ray: is not the address of a Ray cluster; got 'ray://a:1'"),
        (("--ray", "--world", "2"), "--world: Ray shares the units out; got --ray"),
        (("--ray", "--dry-run"), "--dry-run: does not use a cluster; got --ray"),
        (("--ray", "--check"), "--check: does not use a cluster; got --ray"),
        (("--ray", "--device", "cuda:1"), "--device: does not fit --ray; got cuda:1"),
        (("--cores-per-model", "2"), "--cores-per-model: is for --ray"),
    ],
)
def test_refused(
    words: tuple[str, ...], message: str, folder: Path, capfd: pytest.CaptureFixture
) -> None:
    assert embed(*words) == 2
    assert message in capfd.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("option", [("--ray",), ("--cores-per-model", "1")])
def test_needs_a_folder(
    option: tuple[str, ...], folder: Path, capfd: pytest.CaptureFixture
) -> None:
    assert embed(*option, out="a.npy") == 2
    assert f"{option[0]}: is for jobs" in capfd.readouterr().err


def test_the_address_of_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://a:1")
    assert embed("--ray") == 2
    assert "RAY_ADDRESS: is not the address of a Ray cluster" in capfd.readouterr().err


def test_nothing_answers(folder: Path, capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert embed("--ray", address) == 2
    said = capfd.readouterr().err
    assert said.startswith(
        "lastword: --ray: no Ray cluster can be reached (Connection refused); got "
    )
    assert said.count("\n") == 1


def test_without_ray(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert embed("--ray") == 2
    said = capfd.readouterr().err
    assert said.startswith("lastword: --ray: needs ray; got ")
    assert said.endswith("Install it with: pip install 'lastword[ray]'.\n")
