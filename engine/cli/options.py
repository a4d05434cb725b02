"""Options that several commands share, and the one place where a command opens a model."""

import argparse
from typing import TYPE_CHECKING, Any

from lastword.cli.read import FORMATS
from lastword.errors import ConfigError

if TYPE_CHECKING:
    from lastword.embedder import Embedder

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
    "ratios": "--ratios",
    "old_ratio": "--old-ratio",
}


def in_option_words(message: str) -> str:
    """Return a message about an argument of `Embedder` with the name of its option."""
    where, colon, rest = message.partition(":")
    return f"{_OPTION_OF.get(where, where)}{colon}{rest}"


def positive(text: str) -> int:
    """Read a whole number of at least 1; the name of this function is what argparse shows."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of at least 1")
    return number


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what chooses a model and how it is run."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
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
        metavar="FILE",
        help=".txt (a text a line; also any other ending), .jsonl, .csv, .tsv; - is stdin",
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
        raise ConfigError("MODEL: named twice; got MODEL and --model, expected one of them")
    args.model = args.name or args.model


def name_model(args: argparse.Namespace) -> None:
    """Name the built-in model's folder where no model is named, for commands that others read it for."""
    from lastword.weights import locate

    args.model = args.model or str(locate(None).folder)


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
    """Open the model that the options name."""
    from lastword.embedder import Embedder

    return Embedder(args.model, **embedder_options(args))
