"""The folders of the project, the number of random cases of a test, and runs of code in separate processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

from lastword.bench.memory import held_bytes

ROOT = Path(__file__).resolve().parents[2]
# The folder of each of the four top packages; every other package is in one of these folders under its own name.
TOP_FOLDERS = {
    "lastword": "engine",
    "lastword.bench": "bench",
    "lastword.kernels": "kernels",
    "lastword.weights": "weights",
}
# This folder is not installed, because it runs only from a checkout.
LEFT_OUT = ROOT / "bench/builtin"


def examples(count: int) -> int:
    """Return `count` for `make test`, and twenty times `count` for `make soak`, which sets LASTWORD_SOAK."""
    return 20 * count if os.environ.get("LASTWORD_SOAK") else count


def run(
    code: str, cwd: Path, *, python: Path = Path(sys.executable)
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def numbers_of(script: str, *arguments: object) -> list[int]:
    """Run a script in a separate process and return the integers that it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def peak_anonymous(process: subprocess.Popen) -> int:
    """Wait for a process to end; return its peak memory without pages of files, in bytes (Linux only)."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, held_bytes("RssAnon", process.pid))
        time.sleep(0.002)
    return peak
