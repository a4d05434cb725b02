"""`lastword merge`: a new model of several, by a recipe in mergekit's YAML."""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

from lastword.cli import console
from lastword.cli.folder import write_folder


def run(args: argparse.Namespace) -> int:
    """Run the command; see `main.py` for its options."""
    from lastword.weights.atomic import whole_file
    from lastword.weights.blocks import workers
    from lastword.weights.merger import Merge
    from lastword.weights.recipe import read_recipe

    recipe = read_recipe(Path(args.config))
    with ExitStack() as stack:
        report = stack.enter_context(whole_file(args.report)) if args.report else None
        threads = stack.enter_context(workers())
        job = Merge(recipe, threads, local_files_only=args.local_files_only)
        console.say_all(job.notices, quiet=args.quiet)
        for facts in write_folder(args, job, "Merging"):
            if report is not None:
                console.put(report, f"{json.dumps(facts)}\n".encode(), args.report)
    return 0
