"""`lastword bags`: which rows each of several models is trained on, before they are merged."""

import argparse
import os
import re
from pathlib import Path

from lastword.cli import console, options
from lastword.errors import InputError

_ENDINGS = (".jsonl", ".txt")

ABOUT = "plan subsets of data to train models on"
EXAMPLES = """examples:
  lastword bags msmarco.jsonl nli.jsonl --ratios 80,100 --seed 7 -o plan.json
  lastword bags new.jsonl --old msmarco.jsonl nli.jsonl --ratios 100 --seed 8 -o update.json \\
      --into ./released --weights size

Each file is a dataset, sampled by itself without replacement; a row is a line. Beside plan.json
come plan.rows/BAG/DATASET.txt, one row id per line, and plan.merge.yaml, the recipe for lastword
merge. The same seed gives the same plan, whatever the order of the files and the machine. Bags
of old and new data serve a model that is trained on the new data and merged into the old one."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "files",
        nargs="+",
        type=options.path,
        metavar="DATA",
        help="FILE or NAME=FILE; .jsonl, .txt",
    )
    parser.add_argument(
        "--ratios", required=True, help="percent of each dataset per bag, such as 80,100 or 50,rest"
    )
    parser.add_argument("--seed", type=int, required=True, help="what the choice depends on")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=options.path,
        metavar="PLAN",
        help="a new .json file",
    )
    parser.add_argument(
        "--old",
        nargs="+",
        default=[],
        type=options.path,
        metavar="DATA",
        help="data trained on before",
    )
    parser.add_argument(
        "--old-ratio", default="40", metavar="PERCENT", help="of the old data in each bag (40)"
    )
    parser.add_argument("--id-field", metavar="NAME", help="name rows by this field of .jsonl")
    parser.add_argument(
        "--weights", choices=("equal", "size"), default="equal", help="of the models in the recipe"
    )
    parser.add_argument("--into", metavar="MODEL", help="merge the new models into this one")
    parser.add_argument("--quiet", action="store_true", help="no progress and no report")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from lastword.progress import progress_bar
    from lastword.weights.merging import bags, bags_plan

    drawn = bags.read_bags(args.ratios, "--ratios")
    named = [_named(each, old=False) for each in args.files]
    named += [_named(each, old=True) for each in args.old]
    bags.check_names(name for name, _, _ in named)
    if args.into is not None and args.weights == "size" and not args.old:
        raise InputError(
            "--into",
            "its weight by size is the number of old rows",
            remedy="Name them with --old.",
        )
    spec = bags_plan.PlanSpec(
        seed=args.seed,
        bags=drawn,
        old_ratio=bags.percent(args.old_ratio, "--old-ratio"),
        id_field=args.id_field,
        by_size=args.weights == "size",
        into=args.into,
    )
    show = console.shows_progress(quiet=args.quiet)
    size = sum(os.stat(path).st_size for _, path, _ in named)
    with progress_bar(size, show=show, unit="B", what="Counting") as progress:
        datasets = [
            bags.read_dataset(name, path, old=old, progress=progress) for name, path, old in named
        ]
    with progress_bar(None, show=show, unit=" rows", what="Drawing") as progress:
        made = bags_plan.write_plan(Path(args.output), spec, datasets, progress)
    if not args.quiet:
        for bag in made["bags"]:
            console.say(f"bag {bag['name']}: {bag['rows']:,} rows of {len(datasets)} datasets")
        console.say(f"{args.output}: written, with its rows and {made['merge']}")
    return 0


def _named(argument: str, *, old: bool) -> tuple[str, Path, bool]:
    """Read FILE or NAME=FILE; by itself a file gives its name without the ending."""
    name, equals, file = argument.partition("=")
    if not equals or os.path.exists(argument):
        file = argument
        name = Path(argument).stem
    path = Path(file)
    if not path.is_file():
        raise InputError(str(path), "no such file", expected="JSON lines or text")
    if path.suffix not in _ENDINGS:
        raise InputError(
            str(path),
            "wrong ending",
            got=path.suffix or "none",
            expected=".jsonl or .txt, one row per line",
        )
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise InputError(
            str(path),
            f"the name {name!r}",
            expected="letters, digits, _ . -",
            remedy="Give one: NAME=FILE.",
        )
    return name, path, old
