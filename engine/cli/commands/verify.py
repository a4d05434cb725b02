"""`lastword verify`: check a model against transformers; exit status 1 if a check failed."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lastword.cli import console, options, read
from lastword.cli.failures import Failures
from lastword.errors import InputError, count, list_some, printable

if TYPE_CHECKING:
    from lastword.verify import Verdict

ABOUT = "check a model's vectors or scores against transformers"
EXAMPLES = """examples:
  lastword verify Qwen/Qwen3-Embedding-0.6B --scores
  lastword verify ./model --texts mine.jsonl --text-field body --json > verdict.json
  lastword verify ./model --quantize int8
  lastword verify ./tuned --accept "prompt text"
  lastword verify Qwen/Qwen3-Reranker-0.6B

Needs transformers: pip install 'lastword[verify]'. The layers of transformers' model are loaded one at a time, so a
second copy of the model is never in memory. The exit status is 1 if a check failed. Look at the first failed check for
the cause; the later ones may fail for the same reason."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    options.add_name(parser)
    parser.add_argument(
        "--texts",
        action="append",
        type=options.path_argument,
        metavar="FILE",
        help="file of further texts to check the model on, besides the built-in ones; may be repeated. "
        "Records that cannot be read are left out and counted",
    )
    options.add_format_options(parser)
    parser.add_argument(
        "--scores",
        action="store_true",
        help="also run the model card's example in float32, and compare the scores with the card's",
    )
    options.add_known_as(parser, "model card is")
    parser.add_argument(
        "--reranker",
        action="store_true",
        help="treat the model as a reranker; not needed if its files or its name say that it is one",
    )
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="CHECK",
        help='let this check, such as "prompt text", fail without failing the command; has no effect if any check '
        "could not run; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")
    parser.add_argument("--quiet", action="store_true", help="print no progress bar")
    options.add_model_options(parser, kinds=options.EITHER_KIND)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    options.choose_model(args)
    options.fill_in_model(args)
    command = "lastword verify --texts -"
    inputs = read.sources(args.texts, args.input_format, command=command) if args.texts else []
    options.refuse_fields(args, inputs)
    texts = _texts(args, inputs)
    from lastword.verify import verify

    verdict = verify(
        args.model,
        texts=texts,
        scores=args.scores,
        known_as=args.known_as,
        reranker=args.reranker or None,
        accept=args.accept,
        show_progress_bar=console.shows_progress(quiet=args.quiet),
        **options.embedder_options(args),
    )
    if args.json:
        console.print_lines([json.dumps(verdict.as_dict(), ensure_ascii=False, indent=2)])
    else:
        console.print_lines(list(_table(verdict)))
    if verdict.cause is not None:
        console.say(f"{verdict.model}: {verdict.cause.name}: {verdict.cause.detail}")
    return 0 if verdict.passed else 1


def _texts(args: argparse.Namespace, inputs: Sequence[read.Source]) -> list[str]:
    """Return the texts of the files of --texts; print a notice about records that cannot be read.

    Raises:
        InputError: no text is left.
    """
    failures = Failures(skip=True)
    fields = options.fields_of(args)
    found = read.read(inputs, fields, args.delimiter, on_bad=failures.leave_out_line)
    texts = [record.text for record in found]
    if inputs and not texts:
        first = f"The first: {failures.first}" if failures.count else None
        raise InputError("--texts", "contain no text", got=list_some(args.texts), remedy=first)
    console.say_all((*failures.notices(), *options.skipped_notices(fields)), quiet=False)
    return texts


def _table(verdict: "Verdict") -> Iterator[str]:
    """Yield the lines to print: the model, the checks, the errors of the layers, and the result."""
    yield f"model      {printable(verdict.model)}"
    if verdict.dtype:
        mode = f", matmuls in {verdict.quantize}" if verdict.quantize else ""
        reference = f"transformers in {verdict.reference}"
        yield f"computed   on {verdict.device} in {verdict.dtype}{mode}; reference: {reference}"
        yield f"texts      {verdict.texts:,} with {count(verdict.tokens, 'token')} in total"
    yield ""
    for check in verdict.checks:
        yield f"{check.status:<9}  {check.name:<13}  {printable(check.detail)}"
    if verdict.layers:
        yield ""
        yield "relative RMS error of the last token's hidden state after each layer"
        yield "(layer 0 is the embedding table; the last layer includes the final norm)"
        if verdict.quantize:
            yield f"transformers' error is measured with its matmuls rounded to {verdict.quantize}"
        yield f"{'layer':>5}  {'lastword':>9}  {'transformers':>12}  {'allowed':>8}"
        for each in verdict.layers:
            yield f"{each.layer:>5}  {each.ours:>9.1e}  {each.theirs:>12.1e}  {each.allowed:>8.1e}"
    yield ""
    yield "PASSED" if verdict.cause is None else f"FAILED: {verdict.cause.name}"
