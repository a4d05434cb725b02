"""Run a merge again and again in child processes, each killed by SIGKILL at another step, then to its end.

    python killed_merge.py CONFIG FOLDER KILLS

Prints a JSON object for each kill: the step, what was there after it, and what finishing the merge gave.
A step is any call that changes what a crash leaves behind: a write, a sync, a rename, a copy.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from lastword.cli.main import main
from lastword.errors import LastwordError
from lastword.weights import Checkpoint, read_config
from lastword.weights.files import writer


def hooked(place: object, name: str, step) -> None:
    real = getattr(place, name)

    def call(*arguments, **named):
        step()
        return real(*arguments, **named)

    setattr(place, name, call)


def in_child(work) -> int:
    """Run in a fork, which has torch but none of its threads; its exit status, or minus the signal."""
    child = os.fork()
    if child == 0:
        status = 99
        with contextlib.suppress(BaseException):
            status = work()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def merge(config: str, out: Path, kill_at: int | None, count_to: Path | None = None) -> int:
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    places = [(os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (Path, "write_bytes")]
    for place, name in [*places, (writer, "_write_tensor"), (shutil, "rmtree")]:
        hooked(place, name, step)
    status = main(["merge", config, str(out), "--shard-size", "40KB", "--quiet"])
    if count_to is not None:
        count_to.write_text(str(steps))
    return status


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def loads(folder: Path) -> bool:
    try:
        return Checkpoint(folder, read_config(folder)).num_bytes > 0
    except LastwordError:
        return False


def run(config: str, root: Path, kills: int) -> None:
    whole, out = root / "whole", root / "out"
    assert in_child(lambda: merge(config, whole, None, root / "steps")) == 0
    steps = int((root / "steps").read_text())
    expected = digest(whole)
    for i in range(kills):
        at = 1 + (2 * i + 1) * steps // (2 * kills)
        status = in_child(lambda at=at: merge(config, out, at))
        partial = root / ".out.partial"
        kept = sorted(path.name for path in partial.glob("model/*.safetensors"))
        # A partial folder may load only where nothing but the last rename is missing.
        complete = digest(partial / "model") == expected
        after = {
            "step": at, "of": steps, "signal": -status, "kept": len(kept),
            "whole": not out.exists() or digest(out) == expected,
            "unloadable": complete or not loads(partial / "model"),
        }  # fmt: skip
        before = {name: os.stat(partial / "model" / name).st_mtime_ns for name in kept}
        finished = in_child(lambda: merge(config, out, None)) if not out.exists() else 0
        again = sum(os.stat(out / n).st_mtime_ns != before[n] for n in kept if (out / n).exists())
        after |= {
            "finished": finished, "same": digest(out) == expected, "again": again,
            "left": sorted(path.name for path in root.glob(".*")),
        }  # fmt: skip
        print(json.dumps(after), flush=True)
        shutil.rmtree(out)
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
