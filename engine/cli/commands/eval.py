"""`lastword eval`: score a model on mteb's tasks and compare the scores with those on the model card."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from lastword.cli import console, options
from lastword.errors import InputError, count, list_some, printable

if TYPE_CHECKING:
    from lastword.evaluate import Evaluation

ABOUT = "score a model on tasks of mteb, the text embedding benchmark"
EXAMPLES = """examples:
  lastword eval Qwen/Qwen3-Embedding-0.6B --tasks STS12,SciFact
  lastword eval ./model --benchmark "MTEB(eng, v2)" --as Qwen/Qwen3-Embedding-0.6B --results ./mteb
  lastword eval ICT-TIME-and-Querit/ICT-TIME-and-Querit-embedding-v1 --card
  lastword eval Qwen/Qwen3-Reranker-0.6B --tasks AskUbuntuDupQuestions

Needs mteb: pip install 'lastword[eval]'. The result of every finished task is saved in mteb's results folder, so an
interrupted run continues when the same command is run again. --card alone runs no tasks: it compares the results
saved so far with the model card. The exit status is 1 if a task failed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    options.add_name(parser)
    parser.add_argument(
        "--tasks",
        action="extend",
        type=options.names_argument,
        default=[],
        metavar="NAMES",
        help="names of mteb tasks to run, separated by commas; may be repeated",
    )
    parser.add_argument(
        "--benchmark",
        action="append",
        type=options.name_argument,
        default=[],
        metavar="NAME",
        help="name of an mteb benchmark, to run all its public tasks; may be repeated",
    )
    parser.add_argument(
        "--card",
        action="store_true",
        help="compare the saved results with the scores on the model card; with --card alone, no tasks are run",
    )
    options.add_known_as(parser, "task instructions and model card are")
    parser.add_argument(
        "--results",
        type=options.path_argument,
        metavar="FOLDER",
        help="folder in which mteb saves results; by default $MTEB_CACHE, or ~/.cache/mteb if that is not set",
    )
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")
    parser.add_argument("--quiet", action="store_true", help="print no progress bar or notices")
    options.add_model_options(parser, kinds=options.EITHER_KIND)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    options.choose_model(args)
    options.fill_in_model(args)
    if not (args.tasks or args.benchmark or args.card):
        remedy = "Pass --tasks, --benchmark or --card."
        raise InputError("eval", "nothing to do", remedy=remedy)
    from lastword.evaluate import evaluate

    evaluation = evaluate(
        args.model,
        tasks=args.tasks,
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
        closed = count(len(evaluation.closed), "closed task")
        console.say(f"{closed} left out: {list_some(evaluation.closed)}")
    for name, reason in evaluation.failed.items():
        console.say(f"{name}: failed; {reason}")
    return 1 if evaluation.failed else 0


def _table(evaluation: "Evaluation") -> Iterator[str]:
    """Yield the lines to print: the score of each task, then of each benchmark, and the folder of the results."""
    for name, score in evaluation.scores.items():
        yield f"{name:<40}  {score:>8.2f}"
    if evaluation.scores and evaluation.benchmarks:
        yield ""
    if evaluation.benchmarks:
        yield f"{'benchmark':<40}  {'lastword':>8}  {'card':>8}  tasks done"
    for each in evaluation.benchmarks:
        ours, card = (f"{x:.2f}" if x is not None else "-" for x in (each.ours, each.card))
        yield f"{each.benchmark:<40}  {ours:>8}  {card:>8}  {each.done} of {each.tasks}"
    yield f"results in {printable(evaluation.folder)}"
