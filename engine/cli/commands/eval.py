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

ABOUT = "score a model on mteb's tasks"
EXAMPLES = """examples:
  lastword eval Qwen/Qwen3-Embedding-0.6B --tasks STS12,SciFact
  lastword eval ./model --benchmark "MTEB(eng, v2)" --as Qwen/Qwen3-Embedding-0.6B --results ./mteb
  lastword eval ICT-TIME-and-Querit/ICT-TIME-and-Querit-embedding-v1 --card

Needs mteb: pip install 'lastword[eval]'. Every finished task is saved in mteb's own layout, and the
same command goes on where it was stopped. --card reads the results that there are. Exit 1 where a
task failed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    options.add_name(parser)
    parser.add_argument(
        "--tasks", action="append", default=[], metavar="NAMES", help="of mteb, with commas between"
    )
    parser.add_argument(
        "--benchmark", action="append", default=[], metavar="NAME", help="all its open tasks"
    )
    parser.add_argument(
        "--card", action="store_true", help="the table on the model's card beside the results"
    )
    options.add_known_as(parser, "whose instructions and card, where MODEL does not say it")
    parser.add_argument(
        "--results", type=options.path, metavar="FOLDER", help="mteb's cache; else MTEB_CACHE"
    )
    parser.add_argument("--json", action="store_true", help="as a JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress or notices")
    options.add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options.choose_model(args)
    options.name_model(args)
    if not (args.tasks or args.benchmark or args.card):
        remedy = "Name --tasks or --benchmark, or ask for the --card."
        raise InputError("eval", "nothing to do", remedy=remedy)
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
