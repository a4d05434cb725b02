"""Options that several commands share, and the one place where a command opens a model."""

import argparse
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lastword.cli.read import FORMATS
from lastword.errors import (
    ConfigError,
    DeviceError,
    InputError,
    LastwordError,
    LastwordWarning,
    lone_surrogate,
)

if TYPE_CHECKING:
    from lastword.embedder import Embedder
    from lastword.model_info import ModelInfo

QUANTIZE = ("int8", "fp8")

# what Python callers call an argument, and what it is called here
_OPTION_OF = {
    "truncate_dim": "--dim",
    "max_length": "--max-length",
    "max_batch_tokens": "--max-batch-tokens",
    "device": "--device",
    "dtype": "--dtype",
    "quantize": "--quantize",
    "precision": "--precision",
    "ranges": "--ranges",
    "prompt": "--prompt-name",  # a --prompt is checked where it is read
    "accept": "--accept",
    "card": "--card",
    "scores": "--scores",
    "tasks": "--tasks",
    "benchmark": "--benchmark",
}


def in_option_words(problem: LastwordError | LastwordWarning) -> str:
    """Return a problem's line with the name of the option that it is about; a file may be called as an argument is."""
    if isinstance(problem, ConfigError | DeviceError | LastwordWarning):
        problem.where = _OPTION_OF.get(problem.where, problem.where)
    return str(problem)


def text(given: str) -> str:
    """Take text, which is Unicode; the system hands over bytes that are not UTF-8 as lone surrogates."""
    if lone_surrogate(given) is not None:
        raise argparse.ArgumentTypeError("not text in UTF-8")
    return given


def path(given: str) -> str:
    """Take a path as it is: the name of a file may be any bytes."""
    return given


def model(given: str) -> str:
    """Take a model's name; an empty one, as of a variable that is not set, is not the built-in model's."""
    if not given:
        raise argparse.ArgumentTypeError("an empty name, which is no hub id or folder")
    return given


def positive(text: str) -> int:
    """Read a whole number of at least 1; the name of this function is what messages show."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("not a whole number of at least 1")
    return number


def refuse_overwriting(inputs: Iterable[str | None], outputs: Iterable[str | None]) -> None:
    """Refuse an output that is also an input, or two outputs in one place; None is no file."""
    used = {os.path.realpath(path) for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in used:
            raise InputError(path, "would be overwritten", remedy="Name another output file.")
        used.add(place)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what chooses a model and how it is run."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=model,
        help="Hugging Face id or folder of a Qwen3 embedding model; by default the small built-in one",
    )
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument("--local-files-only", action="store_true", help="do not use the network")
    group.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, of several cuda:0,1 or cuda:all; by default a GPU where there is one",
    )
    group.add_argument("--dtype", help="float32 or bfloat16; by default what suits the device")
    group.add_argument(
        "--quantize", choices=QUANTIZE, help="faster on a CPU or on a GPU, at a drift"
    )
    group.add_argument("--dim", type=positive, help="keep this many dimensions of each vector")
    group.add_argument("--max-length", type=positive, help="tokens a text may have")
    group.add_argument("--max-batch-tokens", type=positive, help="tokens computed at once")


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the model as MODEL, for commands that are about one; `choose_model` takes it."""
    parser.add_argument("name", nargs="?", type=model, metavar="MODEL", help="the same as --model")


def add_prompt_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the two ways to name a prompt, of which one may be used."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--prompt-name", help=f"prompt of the model put before each {what}")
    group.add_argument("--prompt", help=f"text put before each {what}")


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Add the input files and how they are read."""
    parser.add_argument(
        "files",
        nargs="*",
        type=path,
        metavar="FILE",
        help=".txt (one text per line; also any other ending), .jsonl, .csv, .tsv; - is stdin",
    )
    add_format_options(parser)
    parser.add_argument(
        "--on-long", choices=("cut", "error"), default="cut", help="what to do with too long texts"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, notices or report")


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add how input files are read."""
    parser.add_argument("--input-format", choices=FORMATS, help="instead of going by the ending")
    parser.add_argument(
        "--text-field", default="text", metavar="NAME", help="field or column with the text"
    )


def add_known_as(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the hub id under which a model is known, for one that lies in a folder."""
    parser.add_argument("--as", dest="known_as", metavar="ID", help=what)


def choose_model(args: argparse.Namespace) -> None:
    """Take MODEL, or --model, of a command that has both."""
    if args.name is not None and args.model is not None:
        raise ConfigError("MODEL", "named twice", got="MODEL and --model", expected="one of them")
    args.model = args.model if args.name is None else args.name


def name_model(args: argparse.Namespace) -> None:
    """Name the built-in model's folder where no model is named, for commands that others read it for."""
    from lastword.weights import locate

    args.model = str(locate(None).folder) if args.model is None else args.model


def embedder_options(args: argparse.Namespace) -> dict[str, Any]:
    """Give the model options in the words of `Embedder`."""
    return {
        "device": args.device,
        "dtype": args.dtype,
        "quantize": args.quantize,
        "revision": args.revision,
        "local_files_only": args.local_files_only,
        "max_length": args.max_length,
        "max_batch_tokens": args.max_batch_tokens,
        "truncate_dim": args.dim,
    }


def open_model(args: argparse.Namespace) -> "Embedder":
    """Load the model that the options name."""
    from lastword.embedder import Embedder

    show = False if args.quiet else None
    return Embedder(args.model, show_progress_bar=show, **embedder_options(args))


def open_files(args: argparse.Namespace) -> "ModelInfo":
    """Open the model that the options name without its weights, of which it may have more than there is memory."""
    from lastword.model_info import ModelInfo

    chosen = embedder_options(args)
    del chosen["max_batch_tokens"]  # nothing is computed
    return ModelInfo(args.model, **chosen)
