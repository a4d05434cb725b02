"""`lastword search`: find the texts nearest to a query by exact search, in constant memory."""

import argparse
import heapq
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from lastword.cli import console, options, read
from lastword.cli.read import Record
from lastword.cli.stream import embed_records
from lastword.errors import InputError, printable
from lastword.report import Report

if TYPE_CHECKING:
    from torch import Tensor

    from lastword.embedder import Embedder

ABOUT = "find the texts nearest to a query"
EXAMPLES = """examples:
  lastword search "how do I reset it" manual.txt
  lastword search "how do I reset it" manual.txt --model Qwen/Qwen3-Embedding-0.6B
  lastword search "reset" docs --files --chunk 200 --ignore 'drafts/'
  lastword search "refund" tickets.csv --text-field message --top-k 3 --json --model ./model"""
SHOWN = 200  # characters of a text shown in the table; --json prints the whole text


class Hit(NamedTuple):
    """A candidate, ordered so that the smallest one of a heap is dropped first."""

    score: float
    order: int  # negative position: among equal scores, the earlier text ranks first
    record: Record


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("query", metavar="QUERY", help="text to search for")
    options.add_input_options(parser)
    options.add_prompt_options(parser, "query")
    parser.add_argument(
        "--top-k", type=options.positive, default=10, help="number of texts to print; by default 10"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line instead of a table"
    )
    options.add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    inputs = options.find_inputs(args)
    console.stdout_bytes()
    embedder = options.open_model(args)
    query_report, report = Report(), Report()
    query = _query(embedder, args, query_report)
    hits: list[Hit] = []
    for hit in _score_records(embedder, query, args, inputs, report):
        if len(hits) < args.top_k:
            heapq.heappush(hits, hit)
        else:
            heapq.heappushpop(hits, hit)
    hits.sort(reverse=True)
    console.print_lines([_line(rank, hit, args.json) for rank, hit in enumerate(hits, 1)])
    notices = _notices(query_report, report, embedder.max_length)
    console.say_all((*embedder.notices, *notices), quiet=args.quiet)
    return 0


def _notices(query: Report, texts: Report, max_length: int) -> Iterator[str]:
    """Yield notices about texts that were cut, and about input without texts."""
    if not texts.texts:
        yield "FILES: contain no texts"
    if query.cut:
        yield f"QUERY: cut to {max_length:,} tokens"
    if texts.cut:
        yield f"{texts.cut:,} of {texts.texts:,} texts cut to {max_length:,} tokens"


def _query(embedder: "Embedder", args: argparse.Namespace, report: Report) -> "Tensor":
    try:
        vectors: Tensor = embedder.encode_query(
            [args.query],
            args.prompt_name,
            args.prompt,
            too_long=args.on_long,
            report=report,
            show_progress_bar=False,
        )
    except InputError as error:
        if error.index is not None:
            error.where = "QUERY"
        raise
    return vectors


def _score_records(
    embedder: "Embedder",
    query: "Tensor",
    args: argparse.Namespace,
    inputs: list[read.Source],
    report: Report,
) -> Iterator[Hit]:
    """Yield every text with its score; vectors are compared one group at a time."""
    position = 0
    prompt = embedder.resolve_prompt(None, None, "document")
    texts = read.read(inputs, args.text_field, args.delimiter)
    splitter = options.open_splitter(args, embedder, prompt)
    for records, matrix in embed_records(
        embedder,
        texts if splitter is None else splitter.pieces(texts, args.text_field),
        prompt,
        too_long=args.on_long,
        report=report,
        show=console.shows_progress(quiet=args.quiet),
    ):
        scores = embedder.similarity(query, matrix)[0].tolist()
        for record, score in zip(records, scores, strict=True):
            yield Hit(score, -position, record)
            position += 1


def _line(rank: int, hit: Hit, as_json: bool) -> str:  # noqa: FBT001  private
    record = hit.record
    if as_json:
        place = record.place()
        if place.keys() == {"path", "line"}:  # neither --files nor --chunk
            place = {"file": record.file, "line": place["line"]}
        fields = {"rank": rank, "score": hit.score, **place, "text": record.text}
        return json.dumps(fields, ensure_ascii=False)
    text = record.text if len(record.text) <= SHOWN else record.text[: SHOWN - 1] + "…"
    return f"{rank:>3}  {hit.score:.4f}  {printable(record.where)}  {printable(text)}"
