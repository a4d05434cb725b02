"""The options of `lastword bench kernels`, `peers` and `model`, and the names they may take.

Read on every `--help`, so nothing heavy is imported here.
"""

import argparse
from pathlib import Path

from lastword.bench.models.workloads import QUICK
from lastword.bench.shapes import SIZES

OPS = ("rms_norm", "add_rms_norm", "qk_norm_rope", "forest_attention", "final_attention", "swiglu")
BASELINES = ("eager", "compile", "sdpa-flash", "sdpa-cudnn", "varlen", "liger")
FORMS = ("descriptor",)  # lastword's own, beside its default where they are named
REP_MS = 100
PEERS = ("sentence-transformers", "llama.cpp")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZE = ("int8", "fp8")
_QUICK = "only {} documents, {} queries and {} queries one a call".format(*QUICK)

KERNELS_EXAMPLES = """examples:
  lastword bench kernels
  lastword bench kernels --op rms_norm swiglu --model 4B --json kernels.jsonl --plot roofline.svg
  lastword bench kernels --op rms_norm --with mypackage.mymodule:my_rms_norm
  lastword bench kernels --op forest_attention --beside sdpa-cudnn descriptor
  lastword bench kernels --compile-only --model 4B --dtype bfloat16

Every implementation is compared with the operation's reference in fp64 before it is timed; a
wrong one has no time, and exit status 1 where it is lastword's or yours. The function of --with
takes the operation's own arguments (lastword.kernels). Times are the median, with the 20th and
80th percentiles; the share of the peak is against a copy and a matmul of the same run."""

PEERS_EXAMPLES = """examples:
  lastword bench peers                      0.6B shape cut to 4 layers, CPU, fp32; tens of minutes
  lastword bench peers --quick              fewer texts, one round
  lastword bench peers --model FOLDER       any checkpoint that they can read
  lastword bench peers --beside llama.cpp   against this one only
  lastword bench peers --device cuda --layers 28

Each library lives in a process of its own and waits while the other works. Vectors are compared
first: where they differ, no figure is printed. The last line of stdout is the result as JSON."""

MODEL_EXAMPLES = """examples:
  lastword bench model --model 0.6B --layers 4
  lastword bench model --model 4B --device cuda --json model.jsonl --plot model.svg
  lastword bench model --quantize int8 --layers 4 --quick

Weights are random and made on the device; texts are made of words that are one token each. After the
lengths it says where the time goes, by stage from strings to vectors and by operation in the forward.
With --quantize the model is timed beside itself without, on documents, queries and one query a call,
and the cosines between their vectors are printed."""


def positive(text: str) -> int:
    """Read a whole number of at least 1; the name of this function is what argparse shows."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("not a whole number of at least 1")
    return number


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench kernels`."""
    parser.add_argument(
        "--op",
        nargs="+",
        choices=OPS,
        metavar="OP",
        help=f"{', '.join(OPS)}; all by default",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        choices=tuple(SIZES),
        metavar="SIZE",
        help=f"whose shapes ({', '.join(SIZES)}); by default 0.6B, 4B and 8B on a GPU, 0.6B on a CPU",
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        help="rows of a batch; by default 16384 on a GPU, 1024 on a CPU",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="by default what suits the device")
    _add_device(parser)
    parser.add_argument(
        "--with",
        dest="own",
        metavar="MODULE:FUNCTION",
        help="put a function of yours through the same gate, peaks and table (with one --op)",
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        choices=BASELINES + FORMS,
        metavar="NAME",
        help=f"baselines ({', '.join(BASELINES)}); all by default, none where nothing follows; or "
        "another form of lastword's own (descriptor: forest_attention on sm_90 and sm_100)",
    )
    parser.add_argument(
        "--rep-ms", type=positive, help=f"milliseconds spent on each time ({REP_MS})"
    )
    parser.add_argument(
        "--compile-only",
        action="store_true",
        help="compile for every GPU architecture, without a GPU; print registers, spills, memory; "
        "with --model, --dtype and --json only",
    )
    _add_json(parser)
    _add_plot(parser, "draw a roofline (.svg, .png)")


def add_peers(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench peers`."""
    parser.add_argument("--model", type=Path, help="checkpoint folder; made at random if left out")
    parser.add_argument(
        "--layers", type=positive, default=4, help="layers of the made checkpoint (4)"
    )
    parser.add_argument(
        "--rounds", type=positive, help="alternated rounds, medians reported (3, --quick: 1)"
    )
    parser.add_argument("--threads", type=positive, default=2, help="threads of each library (2)")
    parser.add_argument(
        "--beside",
        nargs="+",
        choices=PEERS,
        metavar="NAME",
        help=f"libraries ({', '.join(PEERS)}); by default all that can take part",
    )
    parser.add_argument("--quick", action="store_true", help=_QUICK)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, cuda:1")
    parser.add_argument(
        "--dtype",
        choices=DTYPES[:2],
        help="of every library; by default float32 on a CPU, bfloat16 on a GPU",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench model`."""
    parser.add_argument("--model", choices=tuple(SIZES), default="0.6B", help="whose shape (0.6B)")
    parser.add_argument("--layers", type=positive, help="cut to this many layers")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=positive,
        metavar="TOKENS",
        help="tokens of a text; by default 32 128 512, and on a GPU 2048 8192 too; not with --quantize",
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        help="tokens of all texts of a length; by default 65536 on a GPU, 1024 on a CPU; not with "
        "--quantize",
    )
    parser.add_argument("--rounds", type=positive, default=3, help="medians reported (3)")
    parser.add_argument(
        "--quantize", choices=QUANTIZE, help="time the quantised model beside the plain one"
    )
    parser.add_argument("--quick", action="store_true", help=f"with --quantize: {_QUICK}")
    parser.add_argument(
        "--dtype", choices=DTYPES[:2], help="by default float32 on a CPU, bfloat16 on a GPU"
    )
    parser.add_argument(
        "--no-cuda-graphs",
        dest="cuda_graphs",
        action="store_false",
        help="launch the kernels of small batches one by one on a GPU, to compare",
    )
    _add_device(parser)
    _add_json(parser)
    _add_plot(parser, "draw tokens a second by length (.svg, .png); not with --quantize")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write JSON lines here as they come"
    )


def _add_plot(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE", help=about)
