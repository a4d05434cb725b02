"""`lastword run-batch`: write the answers that `lastword serve` would give to the requests of an OpenAI batch file."""

import argparse
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from time import perf_counter
from typing import TYPE_CHECKING, Any, BinaryIO

from lastword.cli import console, options
from lastword.cli.commands.serve import add_answer_options, add_limits, open_ranges, reranks
from lastword.cli.output import check_extension, is_packed, is_stream
from lastword.cli.read import scheme_of, sources, split_ending
from lastword.errors import InputError, count, require_extra

if TYPE_CHECKING:
    from lastword.batch_files.answers import Answers
    from lastword.batch_files.requests import RequestReader
    from lastword.batch_files.results import ResultsFile
    from lastword.serve.settings import Settings

ABOUT = "answer the requests of an OpenAI batch file"
EXAMPLES = """examples:
  lastword run-batch -i requests.jsonl -o results.jsonl --model Qwen/Qwen3-Embedding-0.6B
  lastword run-batch -i requests.jsonl -o results.jsonl --reranker Qwen/Qwen3-Reranker-0.6B
  lastword run-batch -i requests.jsonl --dry-run

  A line of requests.jsonl (`url` may also be /v1/rerank, with `query` and `documents` in `body`):
  {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"input": "how do plants make sugar?"}}
  A line of results.jsonl, in the order of the requests:
  {"id": ..., "custom_id": "1", "response": {"status_code": 200, "request_id": ..., "body": {...}}, "error": null}

The two `body` fields are the request and response bodies of `lastword serve` at that path. If the server would refuse a
request, status_code and body are those of its error response. `response` is null, and `error` has a code and a message,
if a line is not a request at all, has a `url` that this run cannot answer, repeats a custom_id, or has more bytes than
--max-body-bytes. Errors do not stop the run and do not change the exit status; the last line on stderr counts them.

Run the same command again to resume an interrupted run; the output is byte for byte that of an uninterrupted run.
results.jsonl.run.json holds the settings; a run with other settings, or with a changed input, is refused. With a pipe
or - (stdin, stdout) as input or output, a run cannot be continued.

Needs FastAPI and other packages: pip install 'lastword[serve]'."""

_LIMITS = ("max_body_bytes", "max_inputs", "max_characters", "max_request_tokens")
_SHOWN = 10  # errors that --dry-run prints


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "-i",
        "--input-file",
        type=options.path_argument,
        required=True,
        metavar="FILE",
        help="the requests, as JSON lines; the file may be compressed (.gz, .zst) or at a URL; - for stdin",
    )
    parser.add_argument(
        "-o",
        "--output-file",
        type=options.path_argument,
        metavar="OUT",
        help="the answers, as JSON lines; - for stdout",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the requests and count their tokens, and check that an existing OUT can be continued, without "
        "computing or writing anything",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress bar or notices")
    add_answer_options(parser)
    add_limits(parser, _LIMITS, body="a line of the input")
    options.add_model_options(parser, kinds=options.EITHER_KIND)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    _check_options(args)
    with require_extra("FastAPI and uvicorn", "serve", "lastword run-batch"):
        import fastapi  # noqa: F401
        import numpy  # noqa: F401, ICN001
        import orjson  # noqa: F401
        import prometheus_client  # noqa: F401
    from lastword.batch_files.requests import RequestReader
    from lastword.batch_files.results import ResultsFile, check_settings, open_results

    before = None if args.output_file is None else _earlier_settings(args)
    with ExitStack() as stack:
        file = _open_input(args.input_file, stack)
        answers = _open_answers(args, stack, before or {})
        name = "stdin" if args.input_file == "-" else args.input_file
        reader = RequestReader(file, name, _urls(answers), args.max_body_bytes)
        notices = (notice for each in answers.values() for notice in each.model.notices)
        console.say_all(notices, quiet=args.quiet)
        settings = _facts(args, answers)
        if before is not None:
            check_settings(args.output_file, settings, before)
        if args.dry_run:
            results = ResultsFile(console.stdout_bytes(), console.STDOUT)
            return _check(args, reader, results, answers)
        kept = None if is_stream(args.input_file) else settings
        results = stack.enter_context(open_results(args.output_file, kept))
        return _answer(args, reader, results, answers)


def _check_options(args: argparse.Namespace) -> None:
    from lastword.batch_files.results import settings_file

    if args.output_file is None:
        if args.dry_run:
            return
        raise InputError("-o", "missing", expected="a file for the answers, or - for stdout")
    check_extension(args.output_file, "jsonl", "run-batch, which writes JSON lines")
    if not is_stream(args.output_file):
        inputs = None if is_stream(args.input_file) else args.input_file, args.ranges
        outputs = args.output_file, str(settings_file(args.output_file))
        options.refuse_overwriting(inputs, outputs)
    if args.output_file == "-":
        console.stdout_bytes()


def _earlier_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the settings of the earlier run that this run continues, or None if there is none."""
    from lastword.batch_files.results import check_settings, earlier_settings

    before = earlier_settings(args.output_file)
    if before is not None and is_stream(args.input_file):
        check_settings(args.output_file, None, before)
    return before


def _open_input(path: str, stack: ExitStack) -> BinaryIO:
    """Open the file of requests; `stack` closes it."""
    from lastword.cli.read.kinds import packing_of
    from lastword.cli.read.opening import open_bytes

    if path == "-":
        if sys.stdin is None:
            raise InputError("stdin", "is closed", remedy="Name a file.")
        return sys.stdin.buffer
    try:
        # A file of any name may hold JSON lines. Without a format, `sources` refuses a file that it cannot unpack.
        packed = is_packed(split_ending(path)[1]) and packing_of(path) is None
        (source,) = sources([path], None if packed else "jsonl")
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror or error})") from error
    return stack.enter_context(io.BufferedReader(open_bytes(source), 1 << 20))


def _open_answers(
    args: argparse.Namespace, stack: ExitStack, before: Mapping[str, Any]
) -> "dict[str, Answers]":
    """Open the models; return the `Answers` for each path.

    Args:
        args: the command's arguments.
        stack: closes the models.
        before: the settings of the earlier run; empty if there is none.
    """
    from lastword.batch_files.answers import Answers, EmbeddingAnswers, RerankAnswers

    settings, found = _settings(args), list[Answers]()
    if reranks(args):
        alone = stack.enter_context(closing(options.open_reranker(args)))
        found.append(RerankAnswers(alone, settings, args.model_name))
    else:
        embedder = stack.enter_context(closing(options.open_embedder(args)))
        found.append(EmbeddingAnswers(embedder, settings, open_ranges(args)))
        if args.reranker is not None:
            second = options.open_second_reranker(args, args.reranker)
            found.append(RerankAnswers(stack.enter_context(closing(second)), settings))
    for each in found:
        key = f"--max-batch-tokens for {each.path}"
        chosen = args.max_batch_tokens is not None and each is found[0]  # not for a second reranker
        if key in before and not chosen:
            # On a GPU the default depends on its free memory.
            each.model.max_batch_tokens = before[key]
    return {each.path: each for each in found}


def _settings(args: argparse.Namespace) -> "Settings":
    """Return the settings of a server that would give the same answers."""
    from lastword.serve.settings import Limits, Settings

    return Settings(
        limits=Limits(**{name: getattr(args, name) for name in _LIMITS}),
        truncate=args.truncate,
        accept_token_ids=args.accept_token_ids,
        model_name=args.model_name,
    )


def _urls(answers: "Mapping[str, Answers]") -> dict[str, str | None]:
    """Return, for each path that a request may name, None or the reason why it cannot be answered."""
    missing = {
        "/v1/embeddings": "the model is a reranker; name an embedding model with --model.",
        "/v1/rerank": "there is no reranker; name one with --reranker.",
    }
    return {path: None if path in answers else reason for path, reason in missing.items()}


def _facts(args: argparse.Namespace, answers: "Mapping[str, Answers]") -> dict[str, Any]:
    """Return everything that the output depends on besides the requests; the keys are names in words."""
    import lastword

    facts = {f"--{name.replace('_', '-')}": getattr(args, name) for name in _LIMITS}
    facts |= {"--truncate": args.truncate, "--accept-token-ids": args.accept_token_ids}
    for path, each in answers.items():
        facts |= {f"{name} for {path}": value for name, value in each.facts().items()}
    return {"version of lastword": lastword.__version__, **facts}


def _answer(
    args: argparse.Namespace,
    reader: "RequestReader",
    results: "ResultsFile",
    answers: "Mapping[str, Answers]",
) -> int:
    """Write the answers that are missing."""
    from lastword.batch_files.answers import answered_lines, pending_groups
    from lastword.progress import progress_bar

    began, show = perf_counter(), console.shows_progress(quiet=args.quiet)
    path = args.input_file
    unknown = is_stream(path) or scheme_of(path) is not None or is_packed(split_ending(path)[1])
    total = None if unknown else os.path.getsize(path)
    with progress_bar(total, show=show, unit="B", what="Answering") as advance:
        groups = pending_groups(reader, results, answers, advance)
        for lines in answered_lines(groups, answers.values()):
            results.write(lines)
    console.say_all(_summary(results, answers, perf_counter() - began), quiet=args.quiet)
    return 0


def _summary(
    results: "ResultsFile", answers: "Mapping[str, Answers]", seconds: float
) -> Iterator[str]:
    texts = sum(each.report.texts for each in answers.values())
    tokens = sum(each.report.tokens_requested for each in answers.values())
    if results.found:
        yield f"{count(results.found, 'request')} answered by an earlier run"
    if texts:
        speed = f"{texts / seconds:,.0f} texts/s, {tokens / seconds:,.0f} tokens/s"
        yield f"this run: {count(texts, 'text')}, {count(tokens, 'token')}, {speed}"
    first = f"; the first: {results.first_error}" if results.errors else ""
    yield f"{count(results.requests, 'request')}, {results.errors:,} with an error{first}"


def _check(
    args: argparse.Namespace,
    reader: "RequestReader",
    results: "ResultsFile",
    answers: "Mapping[str, Answers]",
) -> int:
    """Print the first errors, and the numbers of requests, texts, tokens and errors."""
    from lastword.batch_files.answers import pending_groups

    requests = texts = tokens = refused = 0
    shown = list[str]()
    for group in pending_groups(reader, results, answers, lambda _: None):
        for pending in group.pending:
            requests += 1
            if pending.job is not None:
                texts += len(pending.job.prepared.ids)
                tokens += pending.job.prepared.tokens
                continue
            refused += 1
            if refused <= _SHOWN:
                shown.append(pending.problem())
    more = [f"and {refused - _SHOWN:,} more"] if refused > _SHOWN else []
    counts = f"{count(requests, 'request')}, {count(texts, 'text')}, {count(tokens, 'token')}"
    console.print_lines([*shown, *more, f"{args.input_file}: {counts}, {refused:,} with an error"])
    return 0
