"""`lastword search`: find the texts nearest to each query by exact search, in one pass and in constant memory.

The texts are embedded, unless the inputs are vectors that `lastword embed` wrote (`lastword.vectors`).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

from lastword.cli import console, options, read
from lastword.cli.documents.paths import names_many
from lastword.cli.failures import (
    Blanks,
    Failures,
    begin_error_list,
    collect_failures,
    require_texts,
    unknown_word_notices,
)
from lastword.cli.read import Record
from lastword.cli.stream import embed_records
from lastword.errors import InputError, count, list_some, printable, valid_name
from lastword.report import Report

if TYPE_CHECKING:
    from torch import Tensor

    from lastword.embedder import Embedder
    from lastword.reranker import Reranker
    from lastword.vectors.find import Found
    from lastword.vectors.made import QueryFormat

ABOUT = "find the texts nearest to a query"
EXAMPLES = """examples:
  lastword search "how do I reset it" manual.txt
  lastword search "how do I reset it" manual.txt --model Qwen/Qwen3-Embedding-0.6B
  lastword search "reset" docs --files --chunk 200 --ignore 'drafts/'
  lastword search "refund" tickets.csv --text-field message --top-k 3 --json --model ./model
  lastword search --queries questions.txt manual.txt --top-k 3 --threshold 0.5
  lastword search "reset" manual.txt --rerank Qwen/Qwen3-Reranker-0.6B --candidates 50
  lastword embed docs -o vectors/ && lastword search "reset" vectors/      embed once, then search many times

A FILE that lastword embed wrote is searched as it is, without embedding the texts again: the folder of a job, or a
.npy, .safetensors, .jsonl or .parquet file with its metadata. Use --model to name the model that made it; the number of
dimensions is taken from the file. Vectors stored as float16, int8, uint8 or bits are converted to float32 and compared
with the query's vector. Each bit becomes +c or -c, where c is the same for all dimensions and vectors, so scores are
lower than with float32 vectors. A hit is shown with its record's `id` or, if it has none, with the file and line of its
text. A .npy or .safetensors file has no texts and no other fields to show, except the texts of chunks. Of an unfinished
job, only the finished units are searched. With --texts, every FILE is read as texts.

Texts that are empty or only white space are skipped. With --queries, each query is printed with its hits below it;
with --json, each hit has its query in the field `query`."""
SHOWN = 200  # characters of a text that the table shows; --json prints the whole text


class Hit(NamedTuple):
    """A text with its score; the smallest `Hit` ranks last."""

    score: float
    order: int  # negative position: among equal scores, the earlier text ranks first
    record: Record


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "query", nargs="?", metavar="QUERY", help="text to search for; leave it out with --queries"
    )
    options.add_input_options(parser)
    options.add_prompt_options(parser, "query")
    parser.add_argument(
        "--queries",
        type=options.path_argument,
        metavar="FILE",
        help="file of queries to search for: one per line, or a field of .jsonl, .csv, .tsv or .parquet records "
        "(--delimiter applies to it too); - is stdin. A query that cannot be read ends the run, even with --on-error "
        "skip",
    )
    parser.add_argument(
        "--query-field",
        type=options.name_argument,
        metavar="NAME",
        help="name of the field or column of the --queries file that holds the query; by default `text`",
    )
    parser.add_argument(
        "--top-k",
        type=options.positive,
        metavar="K",
        default=10,
        help="number of texts to print for each query; by default 10",
    )
    parser.add_argument(
        "--threshold",
        type=number_argument,
        metavar="SCORE",
        help="print only texts with at least this score; by default all. The score is the similarity of text "
        "and query, by the model's similarity function: for cosine similarity, 1 means the same direction, 0 unrelated",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per line instead of a table; if a record of a .jsonl, .csv, .tsv or .parquet "
        "file has fields besides the text, the field `record` holds the whole record",
    )
    _add_stored_options(parser)
    _add_rerank_options(parser)
    options.add_model_options(parser)


def _add_stored_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("stored vectors")
    group.add_argument(
        "--texts",
        action="store_true",
        help="embed the texts in every FILE, even if lastword embed wrote it; by default the vectors of such files are "
        "searched",
    )
    group.add_argument(
        "--ranges",
        type=options.path_argument,
        metavar="FILE",
        help="file of the ranges that int8 or uint8 vectors were made with, as for lastword embed",
    )


def _add_rerank_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reranking")
    group.add_argument(
        "--rerank",
        type=options.model_argument,
        metavar="MODEL",
        help="Hugging Face id or folder of a reranker, which scores the nearest texts again and sorts them by the new "
        "scores. --threshold applies to the new scores; --device, --dtype, --quantize and --local-files-only apply to "
        "both models, the other model options only to --model",
    )
    group.add_argument(
        "--candidates",
        type=options.positive,
        metavar="N",
        help="number of nearest texts that --rerank scores for each query; by default 100, or --top-k if that is more",
    )


def number_argument(given: str) -> float:
    """Parse a finite number."""
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError("not a number")
    return number


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if args.queries is not None and args.query is not None:
        _take_as_file(args)
    stored = _find_stored(args)
    begin_error_list(args)
    query_files = _query_files(args)
    queries, notices = _read_queries(args, query_files)
    if args.candidates is not None and args.rerank is None:
        remedy = "Name a reranker with --rerank."
        raise InputError("--candidates", "is for --rerank", remedy=remedy)
    if args.candidates is not None and args.candidates < args.top_k:
        got, expected = str(args.candidates), f"at least --top-k, which is {args.top_k}"
        raise InputError("--candidates", "too few", got=got, expected=expected)
    if stored:
        options.refuse_delimiter(query_files, args.delimiter)
    inputs = [] if stored else options.find_inputs(args, query_files)
    given = (source.path for source in inputs if source.path != read.STDIN)
    options.refuse_overwriting((*given, args.queries), (args.errors,))
    console.stdout_bytes()
    with collect_failures(args) as failures, ExitStack() as files:
        # The reranker is opened first, so that an error in opening it wastes no search. `closing` works on Ctrl-C too.
        reranker = None
        if args.rerank is not None:
            reranker = files.enter_context(closing(options.open_second_reranker(args, args.rerank)))
        embedder = files.enter_context(closing(options.open_embedder(args)))
        wanted = stored[0].made.query_format(embedder.info, args.dim) if stored else None
        search = _Search(embedder, args, queries, failures, wanted)
        if wanted is None:
            search.run(inputs)
        else:
            search.run_stored(stored, wanted)
        if reranker is not None:
            search.rerank(reranker)
            notices += reranker.notices
    console.print_lines(list(search.lines()))
    unfinished = (notice for each in stored for notice in each.notices)
    notices += [*embedder.notices, *unfinished, *search.notices()]
    console.say_all(failures.notices(), quiet=args.quiet and args.errors is not None)
    console.say_all(notices, quiet=args.quiet)
    return 0


def _find_stored(args: argparse.Namespace) -> "list[Found]":
    """Return the stored vectors that the arguments name; an empty list if they name texts.

    Raises:
        InputError: both vectors and texts are named, the vectors cannot be used, or an option does not apply to them.
    """
    found: list[Found] = []
    if not args.texts and args.files:
        from lastword.vectors.find import find_vectors

        found = find_vectors(args.files, args.text_field)
    if not found:
        if args.ranges is not None:
            raise InputError("--ranges", "is for stored vectors", remedy="Leave it out.")
        return []
    files = [file for each in found for file in each.files]
    for value, option in (
        (args.input_format, "--input-format"),
        (args.whole, "--files"),
        (args.ignore, "--ignore"),
        (args.chunk, "--chunk"),
        (args.overlap, "--overlap"),
        (args.on_error, "--on-error"),
        (args.errors, "--errors"),
        (args.where, "--where"),
        (args.template, "--template"),
        (args.text_field != "text" and not any(file.has_fields for file in files), "--text-field"),
    ):
        if value:
            remedy = "Leave it out, or pass --texts to embed the texts again."
            where = found[0].made.where
            raise InputError(option, "does not apply to stored vectors", got=where, remedy=remedy)
    bare = next((file.name for file in files if not file.has_texts), None)
    if args.rerank is not None and bare is not None:
        raise InputError(
            "--rerank",
            "needs the texts",
            got=f"{valid_name(bare)}, which holds no texts",
            remedy="Embed them to .jsonl or as a job in Parquet, without --drop-text.",
        )
    return found


def _take_as_file(args: argparse.Namespace) -> None:
    """With --queries, move the first argument, which was parsed as QUERY, to the files.

    Raises:
        InputError: there is no such file; the argument may be meant as a query.
    """
    given = args.query
    local = read.scheme_of(given) is None and not names_many(given) and given != read.STDIN
    if local and not os.path.lexists(given):
        remedy = "With --queries every argument is a file: leave QUERY out."
        raise InputError(args.query, "No such file or directory", remedy=remedy)
    args.files.insert(0, args.query)


def query_or_file(args: argparse.Namespace) -> None:
    """Print a notice if QUERY is the name of a file and no FILE is given: the user may want to search that file.

    Raises:
        InputError: in that case, if stdin is a terminal, so that there is nothing to search.
    """
    if args.files or args.query is None or not os.path.exists(args.query):
        return
    kind = "folder" if os.path.isdir(args.query) else "file"
    remedy = f"To search the {kind}, write the query before it."
    if sys.stdin is not None and sys.stdin.isatty():
        raise InputError("QUERY", f"is the name of a {kind}, and FILE is missing", remedy=remedy)
    told = f"stdin is searched for {args.query!r}, which is also the name of a {kind}. {remedy}"
    console.say_all([told], quiet=args.quiet)


def _query_files(args: argparse.Namespace) -> list[read.Source]:
    """Return a list with the --queries file, or an empty list without --queries.

    Raises:
        InputError: the file cannot be read, or does not fit the other options.
    """
    if args.queries is None:
        if args.query_field is not None:
            remedy = "Name a file of queries with --queries."
            raise InputError("--query-field", "is for --queries", remedy=remedy)
        return []
    if args.queries == read.STDIN and (not args.files or read.STDIN in args.files):
        expected = "the texts in files"
        raise InputError("--queries", "stdin cannot hold both", got="-", expected=expected)
    found = read.sources([args.queries], None)
    options.refuse_field(found, args.query_field or "text", "--query-field")
    return found


def _read_queries(
    args: argparse.Namespace, sources: Sequence[read.Source]
) -> tuple[list[Record], list[str]]:
    """Return the queries, and notices about blank ones, which are skipped.

    Args:
        args: the command's arguments.
        sources: the file of queries; empty if the query is an argument.

    Raises:
        InputError: there is no query, every query is blank, or a query cannot be read.
    """
    if not sources:
        remedy = "Write it before the files, or name a file of queries with --queries."
        if args.query is None:
            raise InputError("QUERY", "is missing", remedy=remedy)
        check_query(args.query)
        query_or_file(args)
        return [Record(args.query, "QUERY", None, frozenset(), "")], []
    blanks = Blanks(skip=True)
    found = read.read(sources, read.Fields(args.query_field or "text"), args.delimiter)
    try:
        queries = list(blanks.filter(found))
    except InputError as error:
        if error.remedy is not None:
            error.remedy = error.remedy.replace("--text-field", "--query-field")
        raise
    (source,) = sources
    if not queries:
        raise InputError(source.name, "contains no query", expected="a query per line")
    return queries, [f"{source.name}: {notice}" for notice in blanks.notices()]


def check_query(query: str) -> None:
    """Raise InputError for a query that is empty or only white space."""
    if not query.strip():
        got = "an empty text" if not query else "only white space"
        raise InputError("QUERY", "is blank", got=got, expected="a text to search for")


class _Search:
    """The state of one search: the vectors of the queries, and the texts nearest to each query so far."""

    def __init__(
        self,
        embedder: "Embedder",
        args: argparse.Namespace,
        queries: Sequence[Record],
        failures: Failures,
        wanted: "QueryFormat | None" = None,
    ) -> None:
        self._embedder, self._args, self._queries, self._failures = (
            embedder,
            args,
            queries,
            failures,
        )
        self._blanks, self._fields = Blanks(skip=True), options.fields_of(args)
        self._of_queries, self._of_texts, self._of_pairs = Report(), Report(), Report()
        # The most hits to keep for each query: those to print or, with a reranker, those that it scores.
        self._most = args.top_k
        if args.rerank is not None:
            self._most = args.candidates or max(100, args.top_k)
        self._hits: list[list[Hit]] = [[] for _ in queries]
        self._vectors = self._embed_queries(wanted)

    def _embed_queries(self, wanted: "QueryFormat | None") -> "Tensor":
        """Embed the queries, in the format of the stored vectors if these are searched."""
        try:
            vectors: Tensor = self._embedder.encode_query(
                [query.text for query in self._queries],
                self._args.prompt_name,
                self._args.prompt,
                too_long=self._args.on_long,
                report=self._of_queries,
                show_progress_bar=False,
                truncate_dim=None if wanted is None else wanted.dim,
                normalize_embeddings=wanted is not None and wanted.normalize,
            )
        except InputError as error:
            if error.index is not None:
                error.where = self._queries[error.index].where
            raise
        return vectors

    def run(self, inputs: Sequence[read.Source]) -> None:
        """Compare every text with every query, one group of texts at a time."""
        from lastword.vectors.nearest import Nearest

        args, on_bad = self._args, self._failures.leave_out_line
        prompt, meter = self._embedder.resolve_prompt(None, None, "document"), read.Meter(inputs)
        found = read.read(inputs, self._fields, args.delimiter, on_bad=on_bad, meter=meter)
        texts = self._blanks.filter(found)
        nearest = Nearest[Record](self._vectors, self._embedder.similarity, self._most)
        splitter = options.open_splitter(args, self._embedder, prompt)
        with closing(found):  # closes the files, even if a text is refused below
            for records, matrix in embed_records(
                self._embedder,
                texts
                if splitter is None
                else splitter.split_records(texts, args.text_field, on_bad),
                prompt,
                failures=self._failures,
                meter=meter,
                too_long=args.on_long,
                report=self._of_texts,
                show=console.shows_progress(quiet=args.quiet),
            ):
                nearest.add(matrix, records)
        require_texts(self._of_texts.texts, args.files, self._failures, self._blanks, self._fields)
        self._hits = [
            [Hit(score, -place, record) for score, place, record in best]
            for best in nearest.ranked()
        ]

    def run_stored(self, stored: "Sequence[Found]", wanted: "QueryFormat") -> None:
        """Compare every stored vector with every query."""
        from lastword.cli.ranges import read_ranges
        from lastword.progress import progress_bar
        from lastword.vectors.codes import Codes
        from lastword.vectors.search import search_files

        made, ranges = stored[0].made, None
        if self._args.ranges is not None:
            ranges = read_ranges(self._args.ranges, made.dim, made.space)
        made.check_ranges(ranges, self._args.ranges)
        codes = Codes(made, self._embedder.similarity_fn_name, ranges, unit=wanted.unit)
        files = [file for each in stored for file in each.files]
        counts = [file.count for file in files]
        total = sum(number or 0 for number in counts) if None not in counts else None
        show = console.shows_progress(quiet=self._args.quiet)
        with progress_bar(total, show=show, unit=" vectors", what="Searching") as advance:
            where = list_some(each.made.where for each in stored)
            found = search_files(files, codes, self._vectors, self._most, where, advance)
        self._hits = [
            [Hit(score, -place, record) for score, place, record in best] for best in found
        ]

    def rerank(self, reranker: "Reranker") -> None:
        """Score the nearest texts of each query with a reranker, and keep the best `--top-k`."""
        pairs = [
            (query.text, hit.record.text)
            for query, hits in zip(self._queries, self._hits, strict=True)
            for hit in hits
        ]
        try:
            scores: list[float] = reranker.predict(
                pairs,
                report=self._of_pairs,
                show_progress_bar=None if console.shows_progress(quiet=self._args.quiet) else False,
            ).tolist()
        except InputError as error:
            if error.index is not None:
                every = [hit for hits in self._hits for hit in hits]
                error.where = f"{every[error.index].record.where}, together with its query"
            raise
        scored = iter(scores)
        for hits in self._hits:
            hits[:] = sorted(
                (Hit(next(scored), hit.order, hit.record) for hit in hits), reverse=True
            )
            del hits[self._args.top_k :]

    def lines(self) -> Iterator[str]:
        """Yield the lines to print: the hits of each query. With --queries, the table has each query above its hits."""
        several = self._args.queries is not None
        for number, (query, hits) in enumerate(zip(self._queries, self._hits, strict=True)):
            if several and not self._args.json:
                yield from ("",) if number else ()
                yield _shorten(query.text)
            ranked = filter(self._is_near, sorted(hits, reverse=True))
            yield from hit_lines(ranked, query.text if several else None, as_json=self._args.json)

    def _is_near(self, hit: Hit) -> bool:
        """Return whether a hit reaches the threshold, if there is one."""
        return self._args.threshold is None or hit.score >= self._args.threshold

    def notices(self) -> Iterator[str]:
        """Yield notices about texts left out or cut, and about queries for which no text reaches the threshold."""
        texts, queries = self._of_texts, self._of_queries
        yield from self._blanks.notices()
        yield from options.skipped_notices(self._fields)
        limit = count(self._embedder.max_length, "token")
        all_queries = count(len(self._queries), "query", "queries")
        if queries.cut and self._args.queries is None:
            yield f"QUERY: cut to {limit}"
        elif queries.cut:
            yield f"{queries.cut:,} of {all_queries} cut to {limit}"
        if texts.cut:
            yield f"{texts.cut:,} of {count(texts.texts, 'text')} cut to {limit}"
        yield from unknown_word_notices(queries, all_queries, self._embedder)
        yield from unknown_word_notices(texts, count(texts.texts, "text"), self._embedder)
        if self._of_pairs.cut:
            yield f"{self._of_pairs.cut:,} of {count(self._of_pairs.texts, 'pair')} cut for the reranker"
        far = [max(hits).score for hits in self._hits if hits and not self._is_near(max(hits))]
        if far:
            which = "" if self._args.queries is None else f"{len(far):,} of {all_queries}: "
            yield (
                f"{which}no text scores {self._args.threshold:g} or more; the best score is {max(far):.4f}"
            )


def hit_lines(hits: Iterable[Hit], query: str | None = None, *, as_json: bool) -> Iterator[str]:
    """Yield a line for each hit, the best first.

    Args:
        hits: the hits, the best first.
        query: the query, for the field `query` of a JSON object; None for no such field.
        as_json: whether a line is a JSON object or a row of a table.
    """
    for rank, hit in enumerate(hits, 1):
        if as_json:
            yield _json_line(rank, hit, query)
        else:
            record = hit.record
            name = printable(record.where if record.id is None else str(record.id))
            text = f"  {_shorten(record.text)}" if record.has_text else ""
            yield f"{rank:>3}  {hit.score:.4f}  {name}{text}"


def _json_line(rank: int, hit: Hit, query: str | None) -> str:
    record = hit.record
    own = {} if record.id is None else {"id": record.id}
    text = record.text if record.has_text else None
    fields = {"rank": rank, "score": hit.score, **own, **record.place(), "text": text}
    if query is not None:
        fields = {"query": query, **fields}
    line = json.dumps(fields, ensure_ascii=False)
    return f'{line[:-1]}, "record": {record.fields}}}}}' if record.has_others else line


def _shorten(text: str) -> str:
    """Return the beginning of a text, on one line."""
    return printable(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
