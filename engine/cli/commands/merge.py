"""`lastword merge`: a new model of several, by a recipe in mergekit's YAML."""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

from lastword.cli import console, options
from lastword.cli.model_folder import add_folder_options, write_folder

ABOUT = "make a new model of several"
EXAMPLES = """example: merge.yaml, read as mergekit reads it
  models:
    - model: ./stage-1
      parameters: {weight: 2.8}
    - model: ./stage-2
      parameters: {weight: 4.3}
  merge_method: multislerp
  dtype: float32

  lastword merge merge.yaml ./merged --report tensors.jsonl

A model is a folder or a Hugging Face id; id@revision names a branch, tag or commit of it.

Methods: linear (weight; normalize), multislerp (weight; normalize_weights; base_model if any),
task_arithmetic (weight; lambda, normalize; base_model), slerp (t, from base_model to the other
model). dtype or out_dtype is that of the result; by default it stays as stored. Inner products and
sums are in float64, each value is rounded once. Needs PyYAML: pip install 'lastword[merge]'.

The report has a JSON object per tensor: norms and angles of the models' tensors (less the base's),
their coefficients, and the norm of their sum. A run that was stopped is taken up by running it
again."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "config", type=options.path, metavar="CONFIG", help="the recipe, a YAML file"
    )
    add_folder_options(parser)
    parser.add_argument(
        "--report",
        type=options.path,
        metavar="FILE",
        help="write what was done to each tensor here",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from lastword.weights.files.atomic import whole_file
    from lastword.weights.files.blocks import block_threads
    from lastword.weights.merging.merge import Merge
    from lastword.weights.merging.recipe import read_recipe

    options.refuse_overwriting([args.config], [args.report])
    recipe = read_recipe(Path(args.config))
    with ExitStack() as stack:
        report = stack.enter_context(whole_file(args.report)) if args.report else None
        threads = stack.enter_context(block_threads())
        job = Merge(recipe, threads, local_files_only=args.local_files_only)
        console.say_all(job.notices, quiet=args.quiet)
        for facts in write_folder(args, job, "Merging"):
            if report is not None:
                console.put(report, f"{json.dumps(facts)}\n".encode(), args.report)
    return 0
