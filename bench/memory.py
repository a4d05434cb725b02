"""What a process holds in memory, as the system counts it in /proc/PID/status; watched from a thread where asked."""

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def held_bytes(field: str, pid: int | str = "self") -> int:
    """Read a field such as VmRSS (resident) or RssAnon (no pages of files); 0 for a zombie."""
    with Path(f"/proc/{pid}/status").open(encoding="ascii", errors="replace") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(field)), 0)


def peak_bytes() -> int:
    """Peak resident memory of this process; VmHWM, which unlike ru_maxrss forgets the parent's."""
    try:
        return held_bytes("VmHWM")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def watched(field: str, *, every: float = 0.005) -> Iterator[Callable[[], int]]:
    """Look at a field of this process every so many seconds; give a function that says the most bytes seen."""
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
