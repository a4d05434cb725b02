"""`lastword rerank`: with a reranker, sort texts by relevance to a query, in one pass and in constant memory."""

import argparse
import heapq
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from lastword.cli import console, options, read
from lastword.cli.commands.search import Hit, check_query, hit_lines, number_argument, query_or_file
from lastword.cli.failures import (
    Blanks,
    Failures,
    begin_error_list,
    collect_failures,
    require_texts,
    unknown_word_notices,
)
from lastword.cli.read import Record
from lastword.errors import InputError, count
from lastword.report import Report

if TYPE_CHECKING:
    from lastword.reranker import Reranker

ABOUT = "sort texts by their relevance to a query"
EXAMPLES = """examples:
  lastword rerank "how do I reset it" manual.txt --model Qwen/Qwen3-Reranker-0.6B
  lastword rerank "refund" tickets.csv --text-field message --top-k 3 --json --model ./reranker
  lastword rerank "reset" docs --files --chunk 200 --threshold 0.5 --model ./reranker
  lastword rerank "reset" manual.txt --instruction "Find the page that solves the problem" --model ./reranker

The model reads every text together with the query, so rerank is slower than search but more accurate. Texts that
are empty or only white space are skipped."""
_GROUP = 4096  # texts that are read and then scored together


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("query", metavar="QUERY", help="query to score the texts against")
    too_long = "that does not fit into --max-length together with the query"
    options.add_input_options(parser, too_long=too_long)
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help="tells the model what makes a text relevant; by default the model's own instruction (Qwen3-Reranker: "
        "passages that answer a web search query)",
    )
    parser.add_argument(
        "--top-k",
        type=options.positive,
        metavar="K",
        default=10,
        help="number of texts to print; by default 10",
    )
    parser.add_argument(
        "--threshold",
        type=number_argument,
        metavar="SCORE",
        help="print only texts with at least this score; by default all. The score is a probability from 0 to 1, or "
        "the log-odds if the model's files ask for these",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per line instead of a table; if a record of a .jsonl, .csv, .tsv or .parquet "
        "file has fields besides the text, the field `record` holds the whole record",
    )
    options.add_reranker_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    begin_error_list(args)
    check_query(args.query)
    query_or_file(args)
    inputs = options.find_inputs(args)
    given = (source.path for source in inputs if source.path != read.STDIN)
    options.refuse_overwriting(given, (args.errors,))
    console.stdout_bytes()
    # `closing` frees the model on Ctrl-C too.
    with collect_failures(args) as failures, closing(options.open_reranker(args)) as reranker:
        ranking = _Ranking(reranker, args, failures)
        ranking.run(inputs)
    console.print_lines(list(hit_lines(ranking.hits(), as_json=args.json)))

    console.say_all(failures.notices(), quiet=args.quiet and args.errors is not None)
    console.say_all([*reranker.notices, *ranking.notices()], quiet=args.quiet)
    return 0


class _Ranking:
    """The state of one run: the most relevant texts so far."""

    def __init__(self, reranker: "Reranker", args: argparse.Namespace, failures: Failures) -> None:
        self._reranker, self._args, self._failures = reranker, args, failures
        self._blanks, self._report, self._hits = Blanks(skip=True), Report(), list[Hit]()
        self._position, self._fields = 0, options.fields_of(args)
        try:
            self._head = reranker.text_before_document(args.query, instruction=args.instruction)
        except InputError as error:
            error.where = "QUERY"
            raise

    def run(self, inputs: Sequence[read.Source]) -> None:
        """Score every text, one group of texts at a time."""
        args, on_bad = self._args, self._failures.leave_out_line
        found = read.read(inputs, self._fields, args.delimiter, on_bad=on_bad)
        texts = self._blanks.filter(found)
        splitter = options.open_splitter(args, self._reranker, self._head)
        if splitter is not None:
            texts = splitter.split_records(texts, args.text_field, on_bad)
        with closing(found):  # closes the files, even if a text is refused below
            while group := list(islice(texts, _GROUP)):
                self._score(group)
        require_texts(self._report.texts, args.files, self._failures, self._blanks, self._fields)

    def _score(self, records: list[Record]) -> None:
        """Score a group and keep the most relevant texts; of two texts with equal scores, the earlier ranks first."""
        scores: list[float] | None = None
        while scores is None and records:
            try:
                scores = self._predict(records)
            except InputError as error:
                if error.index is None:
                    raise
                self._failures.leave_out(error, records[error.index])
                records = records[: error.index] + records[error.index + 1 :]
        hits = [
            Hit(score, -self._position - place, record)
            for place, (score, record) in enumerate(zip(scores or [], records, strict=True))
        ]
        self._position += len(records)
        self._hits = heapq.nlargest(self._args.top_k, [*self._hits, *hits])

    def _predict(self, records: list[Record]) -> list[float]:
        args, report = self._args, Report()
        scores: list[float] = self._reranker.predict(
            [(args.query, record.text) for record in records],
            instruction=args.instruction,
            too_long=args.on_long,
            report=report,
            show_progress_bar=None if console.shows_progress(quiet=args.quiet) else False,
        ).tolist()
        self._report.add(report)
        return scores

    def hits(self) -> list[Hit]:
        """Return the texts to print, the most relevant first."""
        least = self._args.threshold
        return [hit for hit in self._hits if least is None or hit.score >= least]

    def notices(self) -> Iterator[str]:
        """Yield notices about texts that were left out or cut, and about a threshold that no text reaches."""
        yield from self._blanks.notices()
        yield from options.skipped_notices(self._fields)
        if self._report.cut:
            limit = count(self._reranker.max_length, "token")
            yield f"{self._report.cut:,} of {count(self._report.texts, 'text')} cut to {limit}"
        texts = count(self._report.texts, "text")
        yield from unknown_word_notices(self._report, texts, self._reranker)
        if self._hits and not self.hits():
            best = f"the best score is {self._hits[0].score:.4f}"
            yield f"no text scores {self._args.threshold:g} or more; {best}"
