"""Read a process's memory from /proc/PID/status, once or repeatedly in a thread."""

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def held_bytes(field: str, pid: int | str = "self") -> int:
    """Read a memory field of a process, in bytes; 0 for a zombie, which has no such field.

    Such fields are VmRSS (resident memory) and RssAnon (resident memory without pages of files).
    """
    with Path(f"/proc/{pid}/status").open(encoding="ascii", errors="replace") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(field)), 0)


def peak_bytes() -> int:
    """Return this process's peak resident memory in bytes.

    The value is VmHWM, which unlike ru_maxrss does not include the parent's peak; without /proc it is ru_maxrss.
    """
    try:
        return held_bytes("VmHWM")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def session_peak_bytes() -> int:
    """Return the sum of the peak resident bytes of this process and the others in its session that still run.

    Without /proc, only this process counts.
    """
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # the process has just ended
            if os.getsid(int(status.parent.name)) == os.getsid(0):
                total += held_bytes("VmHWM", status.parent.name)
    return total or peak_bytes()


@contextmanager
def watch_peak(field: str, *, every: float = 0.005) -> Iterator[Callable[[], int]]:
    """Read a memory field of this process repeatedly in a thread during the `with` block.

    Args:
        field: as for `held_bytes`.
        every: seconds between readings.

    Returns:
        A context manager that yields a function, which returns the largest value so far in bytes.
    """
    peak, watching = held_bytes(field), True

    def look() -> int:
        nonlocal peak
        peak = max(peak, held_bytes(field))
        return peak

    def watch() -> None:
        while watching:
            look()
            time.sleep(every)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield look
    finally:
        watching = False
        thread.join()
