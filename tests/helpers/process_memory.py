"""Memory of other processes: one that is watched while it runs (Linux), and a script that prints what it measured."""

import subprocess
import sys
import time

from lastword.bench.memory import held_bytes


def peak_anonymous(process: subprocess.Popen) -> int:
    """Wait for a process to end; the most bytes beyond pages of files that it was seen with."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, held_bytes("RssAnon", process.pid))
        time.sleep(0.002)
    return peak


def numbers_of(script: str, *arguments: object) -> list[int]:
    """Run a script in a process of its own; the whole numbers that it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]
