"""What a process holds in memory, watched while it runs (Linux)."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def held_bytes(field: str, pid: int | str = "self") -> int:
    """Read a field of /proc/PID/status, such as VmRSS or RssAnon; 0 where a process that ended has none."""
    with open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(field)), 0)


def peak_anonymous(process: subprocess.Popen) -> int:
    """Wait for a process to end; the most bytes beyond pages of files that it was seen with."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, held_bytes("RssAnon", process.pid))
        time.sleep(0.002)
    return peak


@dataclass
class Growth:
    """Bytes of resident memory more than before: the most seen, and those left at the end."""

    peak: int = 0
    left: int = 0


@contextmanager
def resident_growth() -> Iterator[Growth]:
    """Watch this process's resident memory from a thread; the bytes are there after the block."""
    base = held_bytes("VmRSS")
    growth, watching = Growth(), True

    def watch() -> None:
        while watching:
            growth.peak = max(growth.peak, held_bytes("VmRSS") - base)
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        watching = False
        thread.join()
        growth.left = held_bytes("VmRSS") - base
        growth.peak = max(growth.peak, growth.left)


def numbers_of(script: str, *arguments: object) -> list[int]:
    """Run a script in a process of its own, where it may import this module; the whole numbers it prints."""
    paths = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]
