"""Jobs on a Ray cluster of two machines with one core each: the bytes of a local run, whatever is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Alone, because a cluster that is slow to start is taken for a broken one.
pytestmark = [pytest.mark.timing, pytest.mark.filterwarnings("ignore")]
COMMAND = [sys.executable, "-c", "from lastword.cli.entry import main; raise SystemExit(main())"]
UNITS = 60
DEADLINE = 100  # seconds, for a run; it takes about ten
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second machine; both end with the tests, and so do their workers."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")  # here, as it is slow to import
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        both = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE)
        both.add_node(**NODE)
        folder = both.head_node.get_session_dir_path()
        started = [pid for node in both.list_all_nodes() for pid in with_children(raylet(node))]
        yield both
        started += [pid for node in both.list_all_nodes() for pid in with_children(raylet(node))]
        both.shutdown()
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)
        wait_until(lambda: not any(map(is_running, started)))


@pytest.fixture(scope="module")
def home(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a corpus, and in `expected` the output of an undisturbed local run."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("job")
    (folder / "model").symlink_to(tiny_checkpoint)
    (folder / "corpus").mkdir()
    for name in "ab":
        records = [
            {"id": f"{name}{i}", "text": f"{name} {i}: tin {'gravity ' * (i % 40)}"}
            for i in range(600)
        ]
        (folder / "corpus" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    finish(start(folder, "expected/"))
    assert len(done(folder / "expected")) == UNITS
    return folder


@pytest.fixture
def out(home: Path) -> Iterator[Path]:
    yield home / "out"
    shutil.rmtree(home / "out", ignore_errors=True)


def start(home: Path, out: str, *arguments: str) -> subprocess.Popen:
    """Start a run with one thread."""
    words = ["embed", "corpus", "--model", "model", "--unit-records", "20", "-o", out]
    return subprocess.Popen(
        [*COMMAND, *words, *arguments], cwd=home, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ours(said: str) -> list[str]:
    """Return the lines of stderr, without those that Ray's own library writes when workers end."""
    lines = [
        line for line in said.splitlines() if not re.match(r"\[20[-0-9]+ [:,0-9]+ [EW] ", line)
    ]
    assert all(line.startswith("lastword: ") for line in lines), said
    return lines


def on(cluster: Any) -> tuple[str, ...]:
    return "--ray", cluster.address


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for a run to end, and return what it said."""
    try:
        _, said = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == status, said
    return said


def done(out: Path) -> list[str]:
    folder = out / "_done"
    return sorted(os.listdir(folder)) if folder.exists() else []


def wait_until(condition) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)


def in_the_middle(process: subprocess.Popen, out: Path) -> None:
    """Wait until a run has done some of its units, but not all."""
    wait_until(lambda: len(done(out)) >= 3 or process.poll() is not None)
    assert process.poll() is None, process.communicate()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a job, without what a killed process leaves behind."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {
        name: data
        for name, data in found.items()
        if ".lastword-" not in name and not name.startswith("_claims")
    }


def raylet(node) -> int:
    return node.all_processes["raylet"][0].process.pid


def with_children(pid: int) -> list[int]:
    """Return a process and those that it has started."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return [pid]
    return [pid, *(inner for each in words for inner in with_children(int(each)))]


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers(cluster: Any) -> list[int]:
    """Return the processes that have a model."""
    pids = [pid for node in cluster.list_all_nodes() for pid in with_children(raylet(node))]
    return [pid for pid in pids if name_of(pid).startswith("ray::Worker")]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_the_bytes_of_a_local_run(cluster, home: Path, out: Path) -> None:
    said = ours(finish(start(home, "out/", *on(cluster))))
    assert contents(out) == contents(home / "expected")
    assert len(said) == 2, said
    assert said[0].startswith("lastword: this run: 1,200 texts, ")
    assert said[1].startswith("lastword: out: complete; 1,200 texts, ")
    assert not list(out.glob(".lastword-*"))
    wait_until(lambda: not workers(cluster))


def test_a_worker_is_killed(cluster, home: Path, out: Path) -> None:
    process = start(home, "out/", *on(cluster))
    in_the_middle(process, out)
    os.kill(workers(cluster)[0], signal.SIGKILL)
    assert len(done(out)) < UNITS
    said = finish(process)
    assert contents(out) == contents(home / "expected")
    assert len(ours(said)) == 2, said


def test_a_machine_is_lost(cluster, home: Path, out: Path) -> None:
    process = start(home, "out/", *on(cluster))
    in_the_middle(process, out)
    lost = next(node for node in cluster.list_all_nodes() if not node.is_head())
    cluster.remove_node(lost, allow_graceful=False)
    assert len(done(out)) < UNITS
    said = finish(process)
    cluster.add_node(**NODE)
    assert contents(out) == contents(home / "expected")
    assert len(ours(said)) == 2, said


def test_the_driver_is_killed(cluster, home: Path, out: Path) -> None:
    process = start(home, "out/", *on(cluster))
    in_the_middle(process, out)
    process.kill()
    process.communicate()
    wait_until(lambda: not workers(cluster))
    assert len(done(out)) < UNITS
    assert "units are done already" in finish(start(home, "out/"))
    assert contents(out) == contents(home / "expected")


def test_ctrl_c(cluster, home: Path, out: Path) -> None:
    process = start(home, "out/", *on(cluster))
    in_the_middle(process, out)
    process.send_signal(signal.SIGINT)
    assert finish(process, 130) == "lastword: stopped\n"
    wait_until(lambda: not workers(cluster))
    assert len(done(out)) < UNITS
    assert "units are done already" in finish(start(home, "out/", *on(cluster)))
    assert contents(out) == contents(home / "expected")


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cluster_of_its_own_ends_with_the_run(number: int, home: Path, out: Path) -> None:
    process = start(home, "out/", "--ray", "local", "--cores-per-model", "1")
    in_the_middle(process, out)
    started = with_children(process.pid)
    assert len(started) > 5
    process.send_signal(number)
    said, status = ("stopped", 130) if number == signal.SIGINT else ("terminated", 143)
    assert finish(process, status) == f"lastword: {said}\n"
    end = time.monotonic() + 20  # agents that lose their cluster would run for a minute
    while any(map(is_running, started)):
        assert time.monotonic() < end, [name_of(pid) for pid in started if is_running(pid)]
        time.sleep(0.1)
    finish(start(home, "out/"))
    assert contents(out) == contents(home / "expected")


def test_a_unit_that_fails_is_named(cluster, home: Path, out: Path) -> None:
    shutil.copytree(home / "expected", out)
    for number in (3, 7):
        (out / f"_done/{number:06d}.json").unlink()
    (out / "part-000003.parquet").unlink()
    (out / "part-000003.parquet").mkdir()
    said = finish(start(home, "out/", *on(cluster)), 2).splitlines()
    assert said[1:] == [
        "lastword: unit 3: out/part-000003.parquet: cannot be written; got a folder, expected a file name.",
        *said[2:4],
        "lastword: out: 1 unit failed on each of 4 attempts. To retry, run the command again.",
    ]
    assert said[2].startswith("lastword: this run: 20 texts, ")
    assert said[3].startswith("lastword: out: 1 unit still to do; 1,180 texts, ")
    assert "000007.json" in done(out)


def test_another_plan_is_refused(cluster, home: Path, out: Path) -> None:
    shutil.copytree(home / "expected", out)
    said = finish(start(home, "out/", *on(cluster), "--dim", "8"), 2)
    assert said == (
        "lastword: out: holds a job with another dim; got 8, expected 64. Give the options with which the job was "
        "begun, or name another folder.\n"
    )
