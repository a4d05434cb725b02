"""Jobs killed at random moments: whatever is interrupted, the folder is at last that of an undisturbed run."""

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import examples

pytest.importorskip("pyarrow.parquet")

LAST = Path("out/_done/000011.json")
ARGUMENTS = ["embed", "corpus", "--unit-records", "10", "--quiet", "-o", "out/"]
# Imports once, then forks a process per job: a job takes half a second instead of five.
FORKS = """
import json, os, sys
import pyarrow.parquet, torch
import lastword.bulk.command, lastword.embedder
from lastword.cli.main import main
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Jobs:
    """Starts jobs and kills them."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, kill_after: float | None = None) -> int:
        """Run a job, kill it after some seconds, and return its status as `os.waitpid` does."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(ARGUMENTS) + "\n")
        self.process.stdin.flush()
        child = int(self._line())
        if (
            kill_after is not None
            and not select.select([self.process.stdout], [], [], kill_after)[0]
        ):
            os.kill(child, signal.SIGKILL)
        return int(self._line())

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for name, first in (("a", 0), ("b", 70)):
        lines = [
            {"id": i, "text": f"text {i}, {'tin ' * (i % 9)}"} for i in range(first, first + 60)
        ]
        lines.insert(30, {"id": "bad", "text": 5})
        Path(f"corpus/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    started = Jobs(tmp_path)
    yield started
    started.close()


def contents() -> dict[str, bytes]:
    """Return every file of the job, without those that a killed process may leave."""
    files = (path for path in Path("out").rglob("*") if path.is_file())
    return {
        str(path): path.read_bytes()
        for path in files
        if path.parent.name != "_claims" and not path.name.startswith(".lastword-")
    }


def test_killed_at_random_moments(jobs: Jobs) -> None:
    """Kill a job 40 times (800 in `make soak`) while it plans, embeds, writes or renames."""
    jobs.run()
    shutil.rmtree("out")
    began = time.monotonic()
    assert jobs.run() == 0
    took = time.monotonic() - began
    expected = contents()
    assert LAST.exists()
    shutil.rmtree("out")
    draw, kills, rounds = random.Random(0), 0, 0
    while kills < examples(40):
        status = jobs.run(draw.random() * took / 2)
        assert status in (0, signal.SIGKILL)
        kills += status == signal.SIGKILL
        if status == 0:
            rounds += 1
            assert contents() == expected
            shutil.rmtree("out")
    assert jobs.run() == 0
    assert contents() == expected
    assert rounds < kills
