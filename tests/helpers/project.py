"""The folders of the project, and Python beside this one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Package -> folder: four of them, every other package lies in one of these under its own name.
TOP_FOLDERS = {
    "lastword": "engine",
    "lastword.bench": "bench",
    "lastword.kernels": "kernels",
    "lastword.weights": "weights",
}
# Run from a checkout, not installed.
LEFT_OUT = ROOT / "bench/builtin"


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
