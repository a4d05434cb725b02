"""`lastword eval`: a model on mteb's tasks, and beside the table on its card; exit 1 where a task failed."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from lastword.cli import console, options
from lastword.errors import InputError, some

if TYPE_CHECKING:
    from lastword.evaluate import Evaluation


def run(args: argparse.Namespace) -> int:
    """Run the command; see `main.py` for its options."""
    options.choose_model(args)
    options.name_model(args)
    if not (args.tasks or args.benchmark or args.card):
        raise InputError("eval: nothing to do. Name --tasks or --benchmark, or ask for the --card")
    from lastword.evaluate import evaluate

    evaluation = evaluate(
        args.model,
        tasks=[name for names in args.tasks for name in names.split(",") if name],
        benchmarks=args.benchmark,
        card=args.card,
        known_as=args.known_as,
        results=args.results,
        show_progress_bar=console.shows_progress(quiet=args.quiet),
        **options.embedder_options(args),
    )
    if args.json:
        facts = asdict(evaluation)
        console.print_lines([json.dumps(facts, ensure_ascii=False, indent=2)])
    else:
        console.print_lines(list(_table(evaluation)))
    if evaluation.closed and not args.quiet:
        number = len(evaluation.closed)
        console.say(f"{number} closed tasks left out: {some(evaluation.closed)}")
    for name, reason in evaluation.failed.items():
        console.say(f"{name}: failed; {reason}")
    return 1 if evaluation.failed else 0


def _table(evaluation: "Evaluation") -> Iterator[str]:
    for name, score in evaluation.scores.items():
        yield f"{name:<40}  {score:>8.2f}"
    if evaluation.scores and evaluation.benchmarks:
        yield ""
    if evaluation.benchmarks:
        yield f"{'benchmark':<40}  {'lastword':>8}  {'card':>8}  tasks done"
    for each in evaluation.benchmarks:
        ours, card = (f"{x:.2f}" if x is not None else "-" for x in (each.ours, each.card))
        yield f"{each.benchmark:<40}  {ours:>8}  {card:>8}  {each.done} of {each.tasks}"
    yield f"results in {console.printable(evaluation.folder)}"
