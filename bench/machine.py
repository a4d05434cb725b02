"""Gather the facts of a run (device, driver, versions, commit, date), and write results to a file line by line."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import lastword
from lastword.weights import dtype_name
from lastword.weights.files.atomic import check_folder


def describe_run(device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """Gather the facts of a run on `device` in `dtype`; a value that cannot be found is None."""
    driver, power_limit = _nvidia(device)
    commit, dirty = _commit()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "driver": driver,
        "power_limit": power_limit,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": dtype_name(dtype),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "lastword")},
        "commit": commit,
        "dirty": dirty,
    }


def busy_notice(about: Mapping[str, object]) -> str | None:
    """Return a warning if other programs used the processor just before the measurement, else None.

    Args:
        about: the result of `describe_run`, called before the measurement.
    """
    load = about["load_average"]
    if not isinstance(load, float) or load <= 0.5:
        return None
    return f"the machine is busy (load {load:.1f}): the figures are unreliable"


@contextmanager
def json_lines(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open a file for JSON lines during the `with` block; a file that exists is replaced.

    Args:
        path: the file; None discards the lines.

    Returns:
        A context manager that yields a function. The function writes its argument as one line and flushes the file, so
        that an interrupted run keeps its figures.
    """
    if path is None:
        yield lambda _: None
        return
    check_folder(path)
    with path.open("w", encoding="utf-8") as file:

        def write(line: Mapping[str, Any]) -> None:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()

        yield write


def device_name(device: torch.device) -> str:
    """Return the name that the GPU or CPU reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia(device: torch.device) -> tuple[str | None, str | None]:
    """Return the driver version and the power limit from nvidia-smi; None for both on a CPU or if nvidia-smi fails."""
    if device.type != "cuda":
        return None, None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["--query-gpu=driver_version,power.limit", "--format=csv,noheader", f"--id={uuid}"]
    answer = _output(["nvidia-smi", *query])
    if answer is None or "," not in answer:
        return None, None
    driver, limit = answer.splitlines()[0].split(",", 1)
    return driver.strip(), limit.strip()


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of the git checkout that lastword runs from, and whether files differ from that commit.

    Outside a checkout, return the environment variable LASTWORD_COMMIT (None if it is not set) and None.
    """
    folder = Path(lastword.__file__).parent
    git = ["git", "-C", str(folder)]
    if _output([*git, "ls-files", "--error-unmatch", "__init__.py"]) is None:
        return os.environ.get("LASTWORD_COMMIT"), None
    status = _output([*git, "status", "--porcelain"])
    return _output([*git, "rev-parse", "HEAD"]), None if status is None else status != ""


def _output(command: list[str]) -> str | None:
    """Run a command and return its stdout; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
