"""`lastword merge`: merge several models into a new one, by a recipe in mergekit's YAML format."""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

from lastword.cli import console, options
from lastword.cli.model_folder import add_folder_options, write_folder
from lastword.cli.output import check_extension, is_stdout, is_stream, open_output

ABOUT = "merge several models into a new one"
EXAMPLES = """example: merge.yaml, in mergekit's format
  models:
    - model: ./stage-1
      parameters: {weight: 2.8}
    - model: ./stage-2
      parameters: {weight: 4.3}
  merge_method: multislerp
  dtype: float32

  lastword merge merge.yaml ./merged --report tensors.jsonl

A model is a folder or a Hugging Face id; id@revision names a branch, tag or commit of the model. The configuration,
tokenizer, prompts and licences are copied from base_model, or from the first model if there is no base_model; code and
other files are not copied. README.md is written anew.

Methods and their parameters:
  linear           per model: weight. For the merge: normalize
  multislerp       per model: weight. For the merge: normalize_weights, base_model (optional)
  task_arithmetic  per model: weight. For the merge: lambda, normalize, base_model (required)
  slerp            t, from base_model (0) to the other model (1)

A recipe has at most 256 models and 64 KB, and no YAML aliases or tags. A recipe that asks for anything lastword does
not implement is refused.

dtype or out_dtype sets the dtype of the result; by default the stored dtype is kept. Sums and inner products are
computed in float64, and each value is rounded once.

The report has one JSON object per tensor: the norm of each model's tensor, the angles between these tensors in degrees,
each model's coefficient, and the norm of the weighted sum (each tensor times its coefficient). With task_arithmetic,
and with multislerp if it has a base_model, the base model's tensor is first subtracted from each.

An interrupted run continues when the same command is run again. Needs PyYAML: pip install 'lastword[merge]'."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "config",
        type=options.path_argument,
        metavar="CONFIG",
        help="recipe of the merge, a YAML file",
    )
    add_folder_options(parser)
    parser.add_argument(
        "--report",
        type=options.path_argument,
        metavar="FILE",
        help="write a report with one line per tensor to this file, device file or pipe; - is stdout; by default none",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from lastword.weights.files.blocks import block_threads
    from lastword.weights.merging.merge import Merge
    from lastword.weights.merging.recipe import read_recipe

    check_extension(args.report, "jsonl", "--report, which writes JSON lines")
    outputs = (args.out, args.report if args.report and not is_stream(args.report) else None)
    options.refuse_overwriting([args.config], outputs)
    recipe = read_recipe(Path(args.config))
    with ExitStack() as stack:
        report = stack.enter_context(open_output(args.report)) if args.report else None
        threads = stack.enter_context(block_threads())
        job = Merge(recipe, threads, local_files_only=args.local_files_only)
        options.refuse_overwriting(map(str, job.inputs), outputs)
        console.say_all(job.notices, quiet=args.quiet)
        for facts in write_folder(args, job, "Merging"):
            if report is not None:
                name = console.STDOUT if is_stdout(args.report) else args.report
                console.put(report, f"{json.dumps(facts)}\n".encode(), name)
    return 0
