"""`lastword bags`: choose the training rows of each of several models that will be merged."""

import argparse
import os
import re
from pathlib import Path

from lastword.cli import console, options
from lastword.errors import InputError, count

_ENDINGS = (".jsonl", ".txt")

ABOUT = "sample a training set (a bag) for each of several models that will be merged"
EXAMPLES = """examples:
  lastword bags msmarco.jsonl nli.jsonl fever.jsonl --ratios 80,100 --seed 7 -o plan.json
  lastword bags new.jsonl --old msmarco.jsonl nli.jsonl --ratios 100 --seed 8 -o update.json \\
      --into ./released --weights size

A bag is the training data of one model: a sample of the rows of every dataset. Each file is one dataset with one row
per line. Each dataset is sampled separately, without replacement.

With -o plan.json, the command writes plan.json, plan.rows/BAG/DATASET.txt with one row id per line, and
plan.merge.yaml, a recipe for "lastword merge". The same files, ratios and seed always give the same plan, on any
machine and in whatever order the files are listed.

To update a released model, pass its earlier training data with --old: each bag then mixes old and new rows. Pass the
model itself with --into: the recipe then includes it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "files",
        nargs="+",
        type=options.path_argument,
        metavar="DATA",
        help="dataset: a .jsonl or .txt file, as FILE or NAME=FILE; without NAME, the dataset is named after the file",
    )
    parser.add_argument(
        "--ratios",
        required=True,
        help="one percentage per bag, separated by commas: the share of each DATA file that the bag takes (for "
        "--old datasets, see --old-ratio). 80,100 makes two bags: one has 80%% of each dataset, the other all of it. "
        "The word rest, as in 50,rest, makes a bag of the rows that are in no other bag",
    )
    parser.add_argument(
        "--seed", type=_seed, required=True, help="seed of the random choice, a whole number"
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=options.path_argument,
        metavar="PLAN",
        help="new .json file to write the plan to",
    )
    parser.add_argument(
        "--old",
        nargs="+",
        default=[],
        type=options.path_argument,
        metavar="DATA",
        help="datasets that a released model (see --into) was trained on; by default none",
    )
    parser.add_argument(
        "--old-ratio",
        metavar="PERCENT",
        help="percentage of the rows of each old dataset that every bag takes; by default 40",
    )
    parser.add_argument(
        "--id-field",
        type=options.name_argument,
        metavar="NAME",
        help="field of .jsonl rows that holds the row id; by default the row number, from 0",
    )
    parser.add_argument(
        "--weights",
        choices=("equal", "size"),
        default="equal",
        help="weights of the models in the merge: with equal, all models have the same weight; with size, a model's "
        "weight is the number of rows in its bag; by default equal",
    )
    parser.add_argument(
        "--into",
        metavar="MODEL",
        help="released model to merge with the new ones; by default none. With --weights size, the weight of the "
        "released model is the number of rows in the --old datasets, so --old is required",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress bar or summary")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from lastword.progress import progress_bar
    from lastword.weights.merging import bags, bags_plan

    drawn = bags.read_bags(args.ratios, "--ratios")
    sources = [_parse_dataset(each, old=False) for each in args.files]
    sources += [_parse_dataset(each, old=True) for each in args.old]
    bags.check_names(name for name, _, _ in sources)
    old_ratio = bags.percent("40" if args.old_ratio is None else args.old_ratio, "--old-ratio")
    if args.old_ratio is not None and not args.old:
        remedy = "Pass the old data with --old."
        raise InputError("--old-ratio", "no old data is given", remedy=remedy)
    if args.into is not None:
        bags.check_into(args.into, drawn, "--into")
    if args.into is not None and args.weights == "size" and not args.old:
        raise InputError(
            "--into",
            "with --weights size, its weight is the number of old rows, but no old data is given",
            remedy="Pass the old data with --old.",
        )
    spec = bags_plan.PlanSpec(
        seed=args.seed,
        bags=drawn,
        old_ratio=old_ratio,
        id_field=args.id_field,
        by_size=args.weights == "size",
        into=args.into,
    )
    show = console.shows_progress(quiet=args.quiet)
    size = sum(os.stat(path).st_size for _, path, _ in sources)
    with progress_bar(size, show=show, unit="B", what="Counting") as progress:
        datasets = [
            bags.read_dataset(name, path, old=old, progress=progress) for name, path, old in sources
        ]
    with progress_bar(None, show=show, unit=" rows", what="Drawing") as progress:
        made = bags_plan.write_plan(Path(args.output), spec, datasets, progress)
    if not args.quiet:
        for bag in made["bags"]:
            console.say(
                f"bag {bag['name']}: {count(bag['rows'], 'row')} of {count(len(datasets), 'dataset')}"
            )
        console.say(f"{args.output}: written, with its row lists and {made['merge']}")
    return 0


def _seed(text: str) -> int:
    if not re.fullmatch(r"[-+]?\d{1,30}", text, re.ASCII):
        raise argparse.ArgumentTypeError("not a whole number of at most 30 digits")
    return int(text)


def _parse_dataset(argument: str, *, old: bool) -> tuple[str, Path, bool]:
    """Split FILE or NAME=FILE into (name, path, old); the default name is the file name without its extension."""
    name, equals, file = argument.partition("=")
    if not equals or os.path.exists(argument):
        file = argument
        name = Path(argument).stem
    path = Path(file)
    if not path.is_file():
        what = "not a regular file" if os.path.exists(path) else "no such file"
        raise InputError(str(path), what, expected="JSON lines or text")
    if path.suffix not in _ENDINGS:
        raise InputError(
            str(path),
            "unsupported file extension",
            got=path.suffix or "none",
            expected=".jsonl or .txt, one row per line",
        )
    if not re.fullmatch(r"[\w][\w.-]{,59}", name):
        raise InputError(
            str(path),
            f"cannot be used as the name of a dataset: {name!r}",
            expected="at most 60 letters, digits, _ . -",
            remedy="Name the dataset: NAME=FILE.",
        )
    return name, path, old
