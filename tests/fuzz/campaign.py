"""Run many random cases in processes of their own, watched for hangs, memory and sudden death.

    python tests/fuzz/campaign.py --cases 20000              a new seed, printed first
    python tests/fuzz/campaign.py --seed 5 --first 1234 --cases 1   one case again

What fails is kept below --keep: the input of each finding and a report. A finding is printed once per kind, which is
the error and the place that raised it.
"""

import argparse
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

TESTS = Path(__file__).parents[1]
MOST_SECONDS = 10  # of processor time, for one case
MOST_WAIT = 60  # seconds by the clock: a machine may be busy, a case may wait for what never comes
MOST_BYTES = 2 << 30  # for the process, with torch and the models it holds
PER_PROCESS = 2000  # cases


class Hang(BaseException):
    """Raised in a case that takes too long."""


def campaign(
    seed: int,
    first: int,
    cases: int,
    keep: Path,
    *,
    oracle: bool,
    note: Callable[[str], object],
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Run cases `first` to `first + cases - 1` of a seed.

    Returns:
        The findings, one per kind; and how many cases were accepted, by their input's name.
    """
    findings: dict[str, dict[str, Any]] = {}
    accepted: Counter[str] = Counter()
    at, end, start = first, first + cases, time.monotonic()
    while at < end:
        for finding in _one_process(seed, at, min(end, at + PER_PROCESS), keep, oracle=oracle):
            at = finding["number"] + 1
            accepted.update(finding.get("accepted", {}))
            if "kind" in finding and finding["kind"] not in findings:
                findings[finding["kind"]] = finding
                note(
                    f"seed {seed}, case {finding['number']}: {finding['what']}\n    {finding['kind']}"
                )
        took = f"{time.monotonic() - start:.0f} s"
        note(
            f"{at - first:,} of {cases:,} cases in {took}: {accepted.total():,} accepted, {len(findings)} findings"
        )
    return list(findings.values()), accepted


def _one_process(
    seed: int, first: int, end: int, keep: Path, *, oracle: bool
) -> Iterator[dict[str, Any]]:
    """Yield what a process says: a finding, or the last number that it finished."""
    program = "import sys; from fuzz.campaign import main; sys.exit(main())"
    numbers = {"--seed": seed, "--first": first, "--cases": end - first, "--keep": keep}
    options = [str(word) for pair in numbers.items() for word in pair]
    command = [
        sys.executable,
        "-c",
        program,
        "--child",
        *options,
        *(["--oracle"] if oracle else []),
    ]
    number, died = first - 1, True
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=_environment()
        ) as process,
    ):
        for line in process.stdout or ():
            said = json.loads(line)
            number, died = said["number"], not said.get("last", False)
            if "kind" in said or not died:
                yield said
        process.wait()
        if died:
            errors.seek(0)
            trace = errors.read()[-3000:].decode(errors="replace")
            kind = f"the process died with status {process.returncode}: {trace[-300:]}"
            yield {"number": number + 1, "what": "unknown", "kind": kind, "trace": trace}


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])}  # fmt: skip


def child(seed: int, first: int, cases: int, keep: Path, *, oracle: bool) -> None:
    """Run cases in this process and write a line of JSON about each to stdout."""
    from fuzz.cases import Case, Seeds, run

    from lastword.bench.memory import peak_bytes

    say = os.fdopen(os.dup(1), "w", buffering=1)
    signal.signal(signal.SIGALRM, _stop)
    signal.signal(signal.SIGPROF, _stop)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as temporary:
        seeds, accepted = Seeds(Path(temporary)), Counter[str]()
        _limit_memory()
        for number in range(first, first + cases):
            folder = Path(temporary) / "case"
            folder.mkdir()
            case = Case(number, Random(f"{seed}-{number}"), folder)
            said: dict[str, Any] = {"number": number}
            try:
                with _watched():
                    run(case, seeds)
                if oracle and case.vectors:
                    from fuzz.oracle import compare

                    compare(case, seeds)
            except (Exception, Hang) as error:  # noqa: BLE001  every kind is a finding
                said |= {"what": case.what, "kind": _kind(error), "trace": _trace(error)}
                _keep(case.folder, keep / f"{seed}-{number}", said)
            grown = peak_bytes() > MOST_BYTES
            if grown and "kind" not in said:
                said |= {"what": case.what, "kind": "more than 2 GB", "trace": ""}
                _keep(case.folder, keep / f"{seed}-{number}", said)
            accepted[re.split(":| ->", case.what)[0]] += case.accepted
            said["last"] = grown or number == first + cases - 1
            if said["last"]:
                said["accepted"] = accepted
            print(json.dumps(said), file=say)
            shutil.rmtree(folder)
            if grown:
                return


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _limit_memory() -> None:
    """Refuse memory far beyond the limit, so that a machine does not swap before the limit is noticed."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2 * MOST_BYTES, resource.RLIM_INFINITY))


@contextmanager
def _watched() -> Iterator[None]:
    """Raise Hang in Python code that takes too long; end the process if it is not Python code."""
    faulthandler.dump_traceback_later(MOST_WAIT + MOST_SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_REAL, MOST_WAIT)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def _stop(number: int, frame: FrameType | None) -> None:
    most = f"{MOST_WAIT} s" if number == signal.SIGALRM else f"{MOST_SECONDS} s of processor time"
    raise Hang(f"more than {most}")


def _kind(error: BaseException) -> str:
    """Name an error by its type, its message's beginning and the line of ours that let it out."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame
        for frame in frames
        if "/fuzz/" not in frame.filename and "site-packages" not in frame.filename
    ]
    place = (
        f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "the check"
    )
    message = "".join(char for char in str(error)[:120] if not char.isdigit())
    return (
        f"{type(error).__name__} at {place}: {message}"
        if ours
        else f"{type(error).__name__}: {message}"
    )


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6000:]


def _keep(folder: Path, place: Path, said: dict[str, Any]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "report.json").write_text(json.dumps(said, indent=2))
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 10**6:
            copy = place / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 10**9, help="by default a new one"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="folder for findings"
    )
    parser.add_argument(
        "--oracle", action="store_true", help="compare with sentence-transformers, too"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.seed, args.first, args.cases, args.keep, oracle=args.oracle)
        return 0
    note = partial(print, flush=True)
    note(f"seed {args.seed}")
    findings, _ = campaign(
        args.seed, args.first, args.cases, args.keep, oracle=args.oracle, note=note
    )
    for finding in findings:
        print(
            f"\nseed {args.seed}, case {finding['number']}: {finding['what']}\n{finding['trace']}"
        )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
