"""What a process holds beyond pages of files, watched from outside while it runs (Linux)."""

import subprocess
import time
from pathlib import Path


def peak_anonymous(process: subprocess.Popen) -> int:
    """Wait for a process to end; the most bytes of anonymous memory it was seen with."""
    peak = 0
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.002)
    return peak
