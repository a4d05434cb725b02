"""Options shared by several commands, and the functions by which commands open a model."""

import argparse
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lastword.cli import console
from lastword.cli.read import FORMATS, Source
from lastword.errors import (
    ConfigError,
    DeviceError,
    InputError,
    LastwordError,
    LastwordWarning,
    lone_surrogate,
)

if TYPE_CHECKING:
    from lastword.cli.documents.chunks import Splitter
    from lastword.embedder import Embedder
    from lastword.model_info import ModelInfo
    from lastword.reranker import Reranker, RerankerInfo

QUANTIZE = ("int8", "fp8")

# Python argument name -> command-line option
OPTION_OF = {
    "truncate_dim": "--dim",
    "max_length": "--max-length",
    "max_batch_tokens": "--max-batch-tokens",
    "device": "--device",
    "dtype": "--dtype",
    "quantize": "--quantize",
    "revision": "--revision",
    "local_files_only": "--local-files-only",
    "too_long": "--on-long",
    "normalize_embeddings": "--normalize",
    "precision": "--precision",
    "ranges": "--ranges",
    "prompt": "--prompt-name",  # --prompt itself is already checked by the parser
    "prompt_name": "--prompt-name",
    "instruction": "--instruction",
    "known_as": "--as",
    "accept": "--accept",
    "card": "--card",
    "scores": "--scores",
    "tasks": "--tasks",
    "benchmark": "--benchmark",
}


# An argument in an advice: `name='value'`, or a name that is no English word.
_ARGUMENT = re.compile(r"\b([a-z]+(?:_[a-z]+)*)=(['\"]?)([\w:.-]*\w)\2|\b([a-z]+(?:_[a-z]+)+)\b")


def in_option_words(problem: LastwordError | LastwordWarning) -> str:
    """Return the message of a problem, with command-line options in place of Python arguments.

    The `where` of an InputError is left alone: it may be a file that has the name of an argument.
    """
    if isinstance(problem, ConfigError | DeviceError | LastwordWarning):
        problem.where = OPTION_OF.get(problem.where, problem.where)
    if problem.expected is not None:
        problem.expected = _ARGUMENT.sub(_as_option, problem.expected)
    if problem.remedy is not None:
        problem.remedy = _ARGUMENT.sub(_as_option, problem.remedy)
    return str(problem)


def _as_option(found: "re.Match[str]") -> str:
    named, _, value, alone = found.groups()
    option = OPTION_OF.get(named or alone)
    if option is None:
        return found[0]
    return option if value in (None, "True") else f"{option} {value}"


def name_argument(given: str) -> str:
    """Accept a name that is not empty, as of an unset shell variable."""
    if not given:
        raise argparse.ArgumentTypeError("an empty name")
    return text_argument(given)


def names_argument(given: str) -> list[str]:
    """Split names at commas; none of them may be empty."""
    return [name_argument(name) for name in given.split(",")]


def text_argument(given: str) -> str:
    """Accept an argument that is valid Unicode; Python passes bytes that are not UTF-8 as lone surrogates."""
    if lone_surrogate(given) is not None:
        raise argparse.ArgumentTypeError("not valid UTF-8 text")
    return given


def path_argument(given: str) -> str:
    """Accept any path unchanged but an empty one, as of an unset shell variable; a name may contain any bytes."""
    if not given:
        raise argparse.ArgumentTypeError("an empty argument")
    return given


def model_argument(given: str) -> str:
    """Accept the name of a model, but not an empty one: an unset shell variable must not select the built-in model."""
    if not given:
        raise argparse.ArgumentTypeError("an empty name is not a hub id or folder")
    return text_argument(given)  # libraries cannot open other paths, nor can JSON name them


def revision_argument(given: str) -> str:
    """Accept text that is not empty: an unset shell variable must not select the main branch."""
    if not given:
        raise argparse.ArgumentTypeError("an empty name is not a branch, tag or commit")
    return text_argument(given)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError("not a whole number of at least 1")
    return number


def delimiter_argument(given: str) -> str:
    r"""Accept one character; a tab may be written as `tab` or `\t`."""
    delimiter = "\t" if given in ("tab", "\\t") else text_argument(given)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError("not one character, other than a quote or line end")
    return delimiter


def refuse_overwriting(inputs: Iterable[str | None], outputs: Iterable[str | None]) -> None:
    """Refuse an output file that is also an input, and two outputs with the same path; None means no file.

    Raises:
        InputError: a file would be overwritten.
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    used = set(read)
    for path in outputs:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in used:
            expected = (
                "a file that is not one of the inputs"
                if place in read
                else "a file for each output"
            )
            remedy = "Name another output file."
            raise InputError(path, "would be overwritten", expected=expected, remedy=remedy)
        used.add(place)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model and how it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=model_argument,
        help="Hugging Face id or folder of a Qwen3 embedding model; by default the small built-in model",
    )
    _add_loading_options(group)
    group.add_argument(
        "--dim",
        type=positive,
        metavar="N",
        help="number of leading dimensions to keep of each vector, which is then scaled to length 1; by default "
        "what the model sets, else all",
    )
    _add_limit_options(group)


def add_reranker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a reranker and how it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=model_argument,
        required=True,
        help="Hugging Face id or folder of a Qwen3 reranker, such as Qwen/Qwen3-Reranker-0.6B",
    )
    _add_loading_options(group)
    _add_limit_options(
        group,
        "maximum number of tokens of template, instruction, query and text together; only the text is cut",
    )


def _add_loading_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--revision",
        type=revision_argument,
        help="branch, tag or commit of the model on the hub; by default the main branch",
    )
    group.add_argument("--local-files-only", action="store_true", help="do not use the network")
    group.add_argument(
        "--device",
        help="cpu, cuda or cuda:1; several GPUs: cuda:0,1 or cuda:all; by default a GPU if there is one",
    )
    group.add_argument(
        "--dtype",
        help="float32 or bfloat16; by default float32 on a CPU and bfloat16 on a GPU",
    )
    group.add_argument(
        "--quantize",
        choices=QUANTIZE,
        help="faster 8-bit matmuls with a small error: int8 on a CPU, fp8 on a GPU; by default none",
    )


def _add_limit_options(
    group: "argparse._ArgumentGroup", limited: str = "maximum number of tokens per text"
) -> None:
    group.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help=f"{limited}; by default the model's limit",
    )
    group.add_argument(
        "--max-batch-tokens",
        type=positive,
        metavar="N",
        help="maximum number of tokens computed at once; by default chosen for the device",
    )


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument MODEL, for commands about a model; `choose_model` reads it."""
    parser.add_argument(
        "name", nargs="?", type=model_argument, metavar="MODEL", help="same as --model"
    )


def add_prompt_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --prompt-name and --prompt, which exclude each other; `what` is "text" or "query"."""
    group = parser.add_mutually_exclusive_group()
    target = "each text" if what == "text" else "the query"
    default = "default" if what == "text" else "query"
    group.add_argument(
        "--prompt-name",
        metavar="NAME",
        help=f"name of a prompt of the model to put before {target}; by default the model's {default} prompt",
    )
    group.add_argument(
        "--prompt", metavar="TEXT", help=f"text to put before {target}, instead of --prompt-name"
    )


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Add the input files and how they are read."""
    parser.add_argument(
        "files",
        nargs="*",
        type=path_argument,
        metavar="FILE",
        help="input file: .jsonl or .ndjson, .csv, .tsv, or a plain text file with one text per line; or a folder, for "
        "the .txt, .md, .jsonl, .ndjson, .csv and .tsv files in it and below it (no hidden ones, no linked folders, "
        "none that lastword wrote with -o or --header); or a pattern in quotes, such as 'docs/**/*.md'; - is stdin; by "
        "default stdin",
    )
    add_format_options(parser)
    _add_document_options(parser)
    parser.add_argument(
        "--on-long",
        choices=("cut", "error"),
        default="cut",
        help="cut texts that have too many tokens, or stop with an error; by default cut",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="if a text cannot be read or embedded: stop, or skip it and go on; by default stop",
    )
    parser.add_argument(
        "--errors",
        type=path_argument,
        metavar="FILE",
        help="with --on-error skip, list the skipped texts in this file, as JSON lines with the fields path, "
        "line and error, and also chunk, start and end for a piece made by --chunk; a list of an earlier run is "
        "removed first. By default one line on stderr counts them",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print no progress, notices or report; texts skipped because of an error are still counted in one line, "
        "unless --errors lists them",
    )


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for reading input files."""
    parser.add_argument(
        "--input-format",
        choices=FORMATS,
        help="format of the input; by default chosen by the file extension, txt for stdin",
    )
    parser.add_argument(
        "--text-field",
        type=name_argument,
        default="text",
        metavar="NAME",
        help="name of the field or column that holds the text, or, in JSON lines, OUTER.INNER for a field inside "
        "another; by default text",
    )
    parser.add_argument(
        "--delimiter",
        type=delimiter_argument,
        metavar="CHARACTER",
        help="character between the columns of .csv and .tsv files, or the word tab; it applies to a file of "
        "queries too; by default a comma, and a tab in .tsv files",
    )


def _add_document_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for folders, whole files and pieces of texts."""
    group = parser.add_argument_group("documents")
    group.add_argument(
        "--files",
        dest="whole",
        action="store_true",
        help="read each file as one text; in a folder, its .txt, .md, .html and .htm files; HTML tags are removed",
    )
    group.add_argument(
        "--ignore",
        action="append",
        default=[],
        type=path_argument,
        metavar="PATTERN",
        help="leave out files and folders that match, by the rules of .gitignore, such as 'drafts/' or '*.bak.md'; "
        "may be repeated; needs pip install 'lastword[documents]'",
    )
    group.add_argument(
        "--chunk",
        type=positive,
        metavar="N",
        help="split each text into pieces of at most N tokens, at the boundaries of paragraphs, sentences or words; "
        "needs pip install 'lastword[documents]'",
    )
    group.add_argument(
        "--overlap",
        type=positive,
        metavar="M",
        help="let each piece begin with up to M tokens of the one before it; by default none",
    )


def find_inputs(args: argparse.Namespace, queries: Sequence[Source] = ()) -> list[Source]:
    """Return the input files that the options name, and print notices about what was left out.

    Args:
        args: the options.
        queries: other files that are read with the same --delimiter.

    Raises:
        InputError: options cannot be combined, or an input cannot be used.
    """
    from lastword.cli.documents.paths import Finder

    if args.whole and args.input_format is not None:
        got = f"--input-format {args.input_format}"
        raise InputError("--files", "reads each file as one text", got=got, expected="one of them")
    if args.overlap is not None and args.chunk is None:
        raise InputError("--overlap", "needs --chunk", remedy="Pass --chunk N too.")
    if args.overlap is not None and args.overlap >= args.chunk:
        got = f"--chunk {args.chunk} --overlap {args.overlap}"
        raise InputError("--overlap", "is too large", got=got, expected="less than --chunk")
    finder = Finder(
        args.input_format, whole=args.whole, ignore=args.ignore, command=_call_on_stdin(args)
    )
    inputs = finder.find(args.files)
    refuse_field(inputs, args.text_field)
    tables = [each for each in (*inputs, *queries) if each.format in ("csv", "tsv")]
    if args.delimiter is not None and not tables:
        expected = "an input of this kind, or --input-format csv"
        raise InputError("--delimiter", "is for .csv and .tsv files", expected=expected)
    console.say_all(finder.notices(), quiet=args.quiet)
    return inputs


def _call_on_stdin(args: argparse.Namespace) -> str:
    """Return how to call the command so that it reads stdin, for advice."""
    words = ["lastword", args.command]
    if getattr(args, "queries", None) is not None:
        words += ["--queries", shlex.quote(args.queries)]
    elif hasattr(args, "query"):
        words.append("QUERY")
    return " ".join((*words, "-"))


def refuse_field(inputs: Iterable[Source], field: str, option: str = "--text-field") -> None:
    """Refuse a field of the text that is not the usual one where no input has fields.

    Raises:
        InputError: no input is of a format with fields.
    """
    if field != "text" and not any(each.format in ("jsonl", "csv", "tsv") for each in inputs):
        raise InputError(
            option,
            "is for .jsonl, .csv and .tsv files",
            got=repr(field),
            expected="an input of these kinds, or --input-format",
        )


def open_splitter(
    args: argparse.Namespace, embedder: "Embedder | Reranker", prompt: str
) -> "Splitter | None":
    """Return what --chunk splits texts with, or None without --chunk; the prompt is that of the texts."""
    if args.chunk is None:
        return None
    from lastword.cli.documents.chunks import Splitter

    return Splitter(embedder, args.chunk, args.overlap or 0, prompt)


def add_known_as(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --as, the Hugging Face id of a model in a local folder; `what` is looked up by this id."""
    parser.add_argument(
        "--as",
        dest="known_as",
        type=model_argument,
        metavar="ID",
        help=f"Hugging Face id of the {what} to use; by default MODEL itself or, for a local folder, the "
        "published model with the folder's name",
    )


def choose_model(args: argparse.Namespace) -> None:
    """Set the model from MODEL or --model, for a command that has both.

    Raises:
        ConfigError: both are given.
    """
    if args.name is not None and args.model is not None:
        raise ConfigError("MODEL", "given twice", got="MODEL and --model", expected="one of them")
    args.model = args.model if args.name is None else args.name


def name_model(args: argparse.Namespace) -> None:
    """Set the model to the folder of the built-in one if none is given, for commands that pass it to a library."""
    from lastword.weights import locate

    args.model = str(locate(None).folder) if args.model is None else args.model


def embedder_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the model options as keyword arguments of `Embedder`."""
    return {
        **_reranker_options(args),
        "truncate_dim": args.dim,
    }


def _reranker_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": args.device,
        "dtype": args.dtype,
        "quantize": args.quantize,
        "revision": args.revision,
        "local_files_only": args.local_files_only,
        "max_length": args.max_length,
        "max_batch_tokens": args.max_batch_tokens,
    }


def open_model(args: argparse.Namespace) -> "Embedder":
    """Load the model given by the options."""
    from lastword.embedder import Embedder

    show = False if args.quiet else None
    return Embedder(args.model, show_progress_bar=show, **embedder_options(args))


def open_reranker(args: argparse.Namespace) -> "Reranker":
    """Load the reranker given by the options."""
    from lastword.reranker import Reranker

    show = False if args.quiet else None
    return Reranker(args.model, show_progress_bar=show, **_reranker_options(args))


def open_second(args: argparse.Namespace, model: str) -> "Reranker":
    """Load a reranker beside the model given by the options, with those that are for both."""
    from lastword.reranker import Reranker

    return Reranker(model, show_progress_bar=False if args.quiet else None, **_shared(args))


def open_second_files(args: argparse.Namespace, model: str) -> "RerankerInfo":
    """Open a reranker as `open_second` does, without loading its weights."""
    from lastword.reranker import RerankerInfo

    return RerankerInfo(model, **_shared(args))


def _shared(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that are for both models."""
    return {n: getattr(args, n) for n in ("device", "dtype", "quantize", "local_files_only")}


def open_files(args: argparse.Namespace) -> "ModelInfo":
    """Open the model given by the options without loading its weights, which may not fit into memory."""
    from lastword.model_info import ModelInfo

    chosen = embedder_options(args)
    del chosen["max_batch_tokens"]  # nothing is computed
    return ModelInfo(args.model, **chosen)


def open_reranker_files(args: argparse.Namespace) -> "RerankerInfo":
    """Open the reranker given by the options without loading its weights.

    Raises:
        ConfigError: a number of dimensions is given, which a reranker has not.
    """
    from lastword.reranker import RerankerInfo

    if args.dim is not None:
        expected = "none, because the model is a reranker"
        raise ConfigError("--dim", "is for embedding models", got=str(args.dim), expected=expected)
    chosen = _reranker_options(args)
    del chosen["max_batch_tokens"]  # nothing is computed
    return RerankerInfo(args.model, **chosen)
