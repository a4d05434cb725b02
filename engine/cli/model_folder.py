"""The parts that `merge` and `convert` share: both write a new model folder, with a progress bar and a summary."""

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lastword.cli import console, options
from lastword.errors import count

if TYPE_CHECKING:
    from lastword.weights.merging.job import Job


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def byte_size(text: str) -> int:
    """Parse a size such as 500MB or 5GB into bytes; units are powers of 1000, as in other tools that write shards."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) ?([KMGT]?)B?", text.strip().upper(), re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError("not a size such as 500MB or 5GB")
    return size


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the new folder and the size of its files."""
    parser.add_argument(
        "out",
        type=options.path_argument,
        metavar="OUT",
        help="folder to create for the new model; the folder appears only when the model is complete",
    )
    parser.add_argument(
        "--shard-size",
        type=byte_size,
        default="5GB",
        metavar="SIZE",
        help="largest size of a weight file, such as 500MB, exceeded only if a single tensor is larger; by default 5GB",
    )
    parser.add_argument("--local-files-only", action="store_true", help="do not use the network")
    parser.add_argument(
        "--quiet", action="store_true", help="print no progress bar, notices or summary"
    )


def write_folder(args: argparse.Namespace, job: "Job", about: str) -> list[dict[str, Any]]:
    """Run a job that writes a model folder, with a progress bar titled `about`; return facts about each tensor."""
    from lastword.progress import progress_bar
    from lastword.weights.merging.job import total_bytes, write_model

    def say(message: str) -> None:
        console.say_all([message], quiet=args.quiet)

    total = total_bytes(job.specs)
    show = console.shows_progress(quiet=args.quiet)
    start = time.perf_counter()
    with progress_bar(total, show=show, unit="B", what=about) as progress:
        facts = write_model(
            job, Path(args.out), shard_bytes=args.shard_size, progress=progress, notice=say
        )
    seconds = time.perf_counter() - start
    rate = total / seconds / 1e6
    say(
        f"{args.out}: {count(len(facts), 'tensor')}, {total:,} bytes in {seconds:.1f} s, {rate:,.0f} MB/s"
    )
    return facts
