"""What `merge` and `convert` share: a new model folder is written, with progress and a summary."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lastword.cli import console

if TYPE_CHECKING:
    from lastword.weights.rewrite import Job


def write_folder(args: argparse.Namespace, job: "Job", about: str) -> list[dict[str, Any]]:
    """Write a job's folder with a progress bar; give its facts."""
    from lastword.progress import progress_bar
    from lastword.weights.rewrite import num_bytes, write_model

    def say(message: str) -> None:
        console.say_all([message], quiet=args.quiet)

    total = num_bytes(job.layout, job.layout)
    show = console.shows_progress(quiet=args.quiet)
    start = time.perf_counter()
    with progress_bar(total, show=show, unit="B", what=about) as progress:
        facts = write_model(
            job, Path(args.out), shard_bytes=args.shard_size, progress=progress, notice=say
        )
    seconds = time.perf_counter() - start
    rate = total / seconds / 1e6
    say(f"{args.out}: {len(facts)} tensors, {total:,} bytes in {seconds:.1f} s, {rate:,.0f} MB/s")
    return facts
