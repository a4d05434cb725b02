"""`lastword bags`: which rows each of several models is trained on, before they are merged."""

import argparse
import os
import re
from pathlib import Path

from lastword.cli import console
from lastword.errors import InputError

_ENDINGS = (".jsonl", ".txt")


def run(args: argparse.Namespace) -> int:
    """Run the command; see `main.py` for its options."""
    from lastword.progress import progress_bar
    from lastword.weights import bags, bags_plan

    drawn = bags.read_bags(args.ratios)
    named = [_named(each, old=False) for each in args.files]
    named += [_named(each, old=True) for each in args.old]
    bags.check_names(name for name, _, _ in named)
    if args.into is not None and args.weights == "size" and not args.old:
        raise InputError(
            "--into: its weight by size is the number of old rows; name them with --old"
        )
    spec = bags_plan.PlanSpec(
        seed=args.seed,
        bags=drawn,
        old_ratio=bags.percent(args.old_ratio, "old_ratio"),
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
        raise InputError(f"{path}: no such file, expected JSON lines or text")
    if path.suffix not in _ENDINGS:
        raise InputError(
            f"{path}: got {path.suffix or 'no ending'}, expected .jsonl or .txt, a row a line"
        )
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise InputError(
            f"{path}: the name {name!r}; expected letters, digits, _ . -. Give one: NAME=FILE"
        )
    return name, path, old
