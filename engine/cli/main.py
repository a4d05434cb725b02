"""The command `lastword`: its options, and how every error becomes one line and an exit status.

Exit 0: done. 1: a check failed. 2: bad input or usage. 130: stopped by Ctrl-C. A command's module,
and torch with it, is imported when the command runs: `--help` and `--version` stay instant.
"""

import argparse
import importlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

import lastword
from lastword.cli import bench, console, making, options, write
from lastword.errors import InputError, LastwordError, LastwordWarning

EXAMPLES = """examples:
  lastword embed notes.txt --model Qwen/Qwen3-Embedding-0.6B > vectors.jsonl
  lastword search "how do I reset it" manual.txt
  lastword info Qwen/Qwen3-Embedding-0.6B
  lastword verify Qwen/Qwen3-Embedding-0.6B
  lastword eval Qwen/Qwen3-Embedding-0.6B --tasks STS12,SciFact
  lastword merge merge.yaml ./merged"""

EMBED_EXAMPLES = """examples:
  lastword embed notes.txt --model Qwen/Qwen3-Embedding-0.6B > vectors.jsonl
  lastword embed docs.jsonl --text-field body --model ./model --dim 256 -o docs.safetensors
  zcat big.csv.gz | lastword embed - --input-format csv --model ./model -o big.npy

Other fields of .jsonl and .csv records are carried through. The report on stderr counts the
tokens asked for, those computed, and what sharing common beginnings saved; tokens/s is of those
asked for."""

SEARCH_EXAMPLES = """examples:
  lastword search "how do I reset it" manual.txt
  lastword search "how do I reset it" manual.txt --model Qwen/Qwen3-Embedding-0.6B
  lastword search "refund" tickets.csv --text-field message --top-k 3 --json --model ./model"""

INFO_EXAMPLES = """examples:
  lastword info Qwen/Qwen3-Embedding-0.6B
  lastword info ./model --full --json"""

VERIFY_EXAMPLES = """examples:
  lastword verify Qwen/Qwen3-Embedding-0.6B --scores
  lastword verify ./model --texts mine.jsonl --text-field body --json > verdict.json
  lastword verify ./model --quantize int8
  lastword verify ./tuned --accept "prompt text"

Needs transformers: pip install 'lastword[verify]'. Its layers are walked one at a time, so that no
second model is held in memory. Exit 1 where a check failed: the first one names the cause."""

EVAL_EXAMPLES = """examples:
  lastword eval Qwen/Qwen3-Embedding-0.6B --tasks STS12,SciFact
  lastword eval ./model --benchmark "MTEB(eng, v2)" --as Qwen/Qwen3-Embedding-0.6B --results ./mteb
  lastword eval ICT-TIME-and-Querit/ICT-TIME-and-Querit-embedding-v1 --card

Needs mteb: pip install 'lastword[eval]'. Every finished task is saved in mteb's own layout, and the
same command goes on where it was stopped. --card reads the results that there are. Exit 1 where a
task failed."""

BENCH_EXAMPLES = """examples:
  lastword bench kernels --help
  lastword bench peers --quick"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help")

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002
        # argparse's own ignores a full or closed stdout; nothing but help and version comes here
        console.print_text(message)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which must clean up as Ctrl-C does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    with _sigterm_cleans_up():
        status = _guarded(argv)
    problem = console.close_stdout()
    if problem is not None and status == 0:
        console.say(problem)
        status = 2
    return status


def _guarded(argv: Sequence[str] | None) -> int:
    try:
        args = _arguments(argv)
        with _warnings_as_lines(quiet=getattr(args, "quiet", False)):
            status: int = importlib.import_module(f"lastword.cli.{args.command}").run(args)
    except LastwordError as error:
        return _fail(options.in_option_words(str(error)), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}", 2)
    except MemoryError:
        return _fail("out of memory; lower --max-batch-tokens or --max-length", 2)
    except _Terminated:
        return _fail("terminated", 143)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    return status


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; files may stand before, between and after options.

    argparse takes the files from one place only and leaves those elsewhere unrecognised.
    """
    parser = _parser()
    args, others = parser.parse_known_args(argv)
    unknown = [other for other in others if other.startswith("-") and other != "-"]
    if unknown or (others and not hasattr(args, "files")):
        parser.error(f"{args.command}: unknown argument {(unknown or others)[0]}")
    if others:
        args.files += others
    return args


def _fail(message: str, status: int) -> int:
    console.say(message)
    return status


@contextmanager
def _warnings_as_lines(*, quiet: bool) -> Iterator[None]:
    """Say lastword's own warnings as notices are said; others are shown as Python shows them."""
    with warnings.catch_warnings():
        shown_by_python = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, LastwordWarning):
                shown_by_python(message, category, filename, lineno, file, line)
            elif not quiet:
                console.say(options.in_option_words(str(message)))

        warnings.showwarning = show
        yield


@contextmanager
def _sigterm_cleans_up() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  given by Python
    raise _Terminated


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lastword",
        description=lastword.__doc__.splitlines()[0] if lastword.__doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lastword {lastword.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _embed(_command(commands, "embed", "turn texts into vectors", EMBED_EXAMPLES))
    _search(_command(commands, "search", "find the texts nearest to a query", SEARCH_EXAMPLES))
    _info(_command(commands, "info", "say what a model is and whether it is whole", INFO_EXAMPLES))
    _verify(
        _command(commands, "verify", "compare with transformers, check by check", VERIFY_EXAMPLES)
    )
    _eval(_command(commands, "eval", "score a model on mteb's tasks", EVAL_EXAMPLES))
    _bench(_command(commands, "bench", "measure kernels, models and peers", BENCH_EXAMPLES))
    for name, (about, examples, add_options) in making.COMMANDS.items():
        add_options(_command(commands, name, about, examples))
    return parser


def _command(
    commands: "argparse._SubParsersAction[_Parser]", name: str, about: str, examples: str
) -> _Parser:
    return commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _embed(parser: argparse.ArgumentParser) -> None:
    options.add_input_options(parser)
    options.add_prompt_options(parser, "text")
    parser.add_argument("-o", "--output", metavar="OUT", help="write here, whole or not at all")
    parser.add_argument(
        "--format",
        choices=write.FORMATS,
        help="by default the ending of OUT, else jsonl; npy puts its metadata in OUT.json",
    )
    parser.add_argument(
        "--vector-field", default="embedding", metavar="NAME", help="field, or tensor, of vectors"
    )
    parser.add_argument(
        "--precision",
        choices=tuple(write.LAYOUTS),
        default="float32",
        help="of the vectors written",
    )
    parser.add_argument(
        "--normalize", action="store_true", help="to length 1, also where the model does not"
    )
    parser.add_argument("--ranges", metavar="FILE", help="saved ranges for int8 or uint8 codes")
    parser.add_argument(
        "--save-ranges", metavar="FILE", help="save the ranges of these vectors (float32 only)"
    )
    options.add_model_options(parser)


def _search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY", help="what to look for")
    options.add_input_options(parser)
    options.add_prompt_options(parser, "query")
    parser.add_argument("--top-k", type=options.positive, default=10, help="how many (10)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    options.add_model_options(parser)


def _info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the same as --model")
    parser.add_argument("--json", action="store_true", help="as a JSON object")
    parser.add_argument(
        "--full",
        action="store_true",
        help="hash every byte of the files; exit 1 where one is damaged",
    )
    options.add_model_options(parser)


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the same as --model")
    parser.add_argument(
        "--texts", action="append", metavar="FILE", help="also these texts; may be given again"
    )
    options.add_format_options(parser)
    parser.add_argument(
        "--scores", action="store_true", help="also the example on the model's card, in float32"
    )
    options.add_known_as(parser, "whose card, where MODEL does not say it")
    parser.add_argument(
        "--accept", action="append", default=[], metavar="CHECK", help="let this check fail"
    )
    parser.add_argument("--json", action="store_true", help="as a JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options.add_model_options(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the same as --model")
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
    parser.add_argument("--results", metavar="FOLDER", help="mteb's cache; else MTEB_CACHE")
    parser.add_argument("--json", action="store_true", help="as a JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress or notices")
    options.add_model_options(parser)


def _bench(parser: _Parser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    bench.add_benchmarks(lambda *described: _command(benchmarks, *described))


if __name__ == "__main__":
    sys.exit(main())
