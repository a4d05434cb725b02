"""The options of `lastword bench kernels`, `peers` and `model`, and the choices that these options accept.

Every `--help` imports this module, so it imports nothing heavy.
"""

import argparse
from pathlib import Path

from lastword.bench.models.workloads import QUICK
from lastword.bench.shapes import SIZES

OPS = ("rms_norm", "add_rms_norm", "qk_norm_rope", "forest_attention", "final_attention", "swiglu")
BASELINES = ("eager", "compile", "sdpa-flash", "sdpa-cudnn", "varlen", "liger")
# Other forms of lastword's own kernels, timed only if requested by name. "stages-2" and "scaled" are forest_attention
# as it was before 2026-11-30: two stages; the softmax scale as a factor of every product. "before" is both.
FORMS = ("descriptor", "stages-2", "scaled", "before")
REP_MS = 100
PEERS = ("sentence-transformers", "llama.cpp", "vllm")
PRECISIONS = ("fp32", "bf16", "8bit")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZE = ("int8", "fp8")
_QUICK = "use fewer texts: {} documents, {} queries in one call and {} one at a time".format(*QUICK)

KERNELS_EXAMPLES = """examples:
  lastword bench kernels
  lastword bench kernels --op rms_norm swiglu --model 4B --json kernels.jsonl --plot roofline.svg
  lastword bench kernels --op rms_norm --with mypackage.mymodule:my_rms_norm
  lastword bench kernels --op forest_attention --beside sdpa-cudnn descriptor
  lastword bench kernels --compile-only --model 4B --dtype bfloat16

Before an implementation is timed, it is compared with the fp64 reference of its operation. An
implementation with wrong results is not timed. The exit status is 1 if that implementation is
lastword's own, one of its other forms of attention (descriptor, stages-2, scaled, before), or the
function given by --with. This function takes the same arguments as the operation in
lastword.kernels. Times are medians, with the 20th and 80th percentiles. "of peak" is the shortest
possible time divided by the median. The shortest possible time follows from the bandwidth of a copy
and the speed of a matmul, both measured in the same run."""

PEERS_EXAMPLES = """examples:
  lastword bench peers                        the 0.6B shape on a CPU; an hour
  lastword bench peers --layers 4             quicker, with long texts too; few layers favour lastword
  lastword bench peers --quick --layers 4     few texts, one round
  lastword bench peers --model FOLDER         a checkpoint that every library can read
  lastword bench peers --beside vllm --python vllm/bin/python --precisions fp32 bf16
  lastword bench peers --grid --layers 4      from 1 to 4,000 tokens, 1 to 512 texts
  lastword bench peers --busy --layers 4      while two other processes are busy
  lastword bench peers --scaling --layers 4   lastword on one thread and on two
  lastword bench peers --rerank --layers 4    a reranker; --rerank 20x50 for 20 queries with 50 documents each
  lastword bench peers --device cuda

Each library runs in its own process and waits while another one works. The vectors, or the log-odds
of rerankers, are compared first; a library whose results differ is not timed. The last line of stdout
is the result as JSON. The exit status is 1 if the results of a library differ from lastword's or, with
--grid or --busy, if lastword is slower anywhere."""

MODEL_EXAMPLES = """examples:
  lastword bench model --model 0.6B --layers 4
  lastword bench model --model 4B --device cuda --json model.jsonl --plot model.svg
  lastword bench model --quantize int8 --layers 4 --quick

Weights are random and created on the device. Texts consist of words of one token each. After the
times per text length, a breakdown shows where the time goes: by stage from text to vector, and by
operation within the forward pass. With --quantize, the quantised model is compared with the
unquantised one on documents, on queries in one call, and on queries one at a time: the times of
both, and the cosines between their vectors."""


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError("not a whole number of at least 1")
    return number


def queries_and_documents(text: str) -> tuple[int, int]:
    """Parse two whole numbers such as 20x50."""
    numbers = text.split("x")
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError("not two whole numbers such as 20x50")
    return positive(numbers[0]), positive(numbers[1])


def path(text: str) -> Path:
    """Parse a path; refuse an empty one, which may come from an unset shell variable."""
    if not text:
        raise argparse.ArgumentTypeError("an empty argument")
    return Path(text)


def json_lines_file(text: str) -> Path:
    """Parse the path of a file of JSON lines."""
    if Path(text).suffix not in (".jsonl", ".ndjson"):
        raise argparse.ArgumentTypeError("not a name that ends in .jsonl")
    return Path(text)


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench kernels`."""
    parser.add_argument(
        "--op",
        nargs="+",
        choices=OPS,
        metavar="OP",
        help=f"operations to time: {', '.join(OPS)}; by default all",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        choices=tuple(SIZES),
        metavar="SIZE",
        help=f"model sizes whose tensor shapes are used ({', '.join(SIZES)}); by default 0.6B, 4B and 8B on a GPU or "
        "with --compile-only, 0.6B on a CPU",
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        help="number of tokens in a batch; by default 16384 on a GPU, 1024 on a CPU",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of the tensors; by default chosen for the device, or bfloat16 and float32 with "
        "--compile-only",
    )
    _add_device(parser)
    parser.add_argument(
        "--with",
        dest="own",
        metavar="MODULE:FUNCTION",
        help="check and time your own function in the same way; needs exactly one --op",
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        choices=BASELINES + FORMS,
        metavar="NAME",
        help=f"baselines to compare with: {', '.join(BASELINES)}; by default all of these; --beside with no names "
        "means no baselines. More forms of lastword's forest_attention kernel run only if you name them: `descriptor` "
        "(tensor descriptors, NVIDIA sm_90 and sm_100 only); on sm_90 `stages-2` (two pipeline stages instead of "
        "three), `scaled` (the softmax scale multiplies every product) and `before` (both)",
    )
    parser.add_argument(
        "--rep-ms",
        type=positive,
        help=f"milliseconds to spend on each measurement; by default {REP_MS}",
    )
    parser.add_argument(
        "--compile-only",
        action="store_true",
        help="compile for sm_80, sm_90, sm_100, gfx942 and gfx950, without a GPU, and print registers, spills "
        "and memory; the exit status is 1 if a kernel spills registers; can be combined with --model, --dtype and "
        "--json only",
    )
    _add_json(parser)
    _add_plot(parser, "draw a roofline plot to this .svg or .png file")


def add_peers(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench peers`."""
    parser.add_argument(
        "--model",
        type=path,
        metavar="FOLDER",
        help="checkpoint folder; by default a new one with random weights",
    )
    parser.add_argument(
        "--layers",
        type=positive,
        default=28,
        help="number of layers of the random checkpoint; by default 28, as in the real 0.6B model; with more than 8 "
        "on a CPU, long texts are left out",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        help="number of rounds, in which the libraries take turns; medians are reported; by default 5, "
        "or 1 with --quick",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=2,
        help="number of threads of each library; by default 2",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        metavar="NAME",
        help=f"precisions to compare at: {', '.join(PRECISIONS)}; by default all on a CPU (with --rerank, all "
        "but 8bit), bf16 on a GPU, fp32 with --grid and --busy",
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        choices=PEERS,
        metavar="NAME",
        help=f"libraries to compare with ({', '.join(PEERS)}); by default all that are available",
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="FILE",
        help="Python of the virtual environment in which vLLM is installed",
    )
    parser.add_argument("--quick", action="store_true", help="few texts, one round")
    _add_modes(parser)
    parser.add_argument(
        "--json", action="store_true", help="print only the result, as one line of JSON"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1; by default cpu")


def _add_modes(parser: argparse.ArgumentParser) -> None:
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--grid",
        action="store_true",
        help="compare with sentence-transformers on texts of equal length, from 1 to 4,000 tokens",
    )
    mode.add_argument(
        "--busy",
        action="store_true",
        help="compare with sentence-transformers while two busy loops run; lastword runs with --threads threads, and "
        "once more with one",
    )
    mode.add_argument(
        "--scaling",
        action="store_true",
        help="compare lastword on N threads (N is --threads) with lastword on one thread, and with N models side by "
        "side, each on one thread (for N = 2, this is device 'cpu,cpu')",
    )
    mode.add_argument(
        "--rerank",
        nargs="?",
        const=(),
        type=queries_and_documents,
        metavar="QxD",
        help="compare rerankers on Q queries with D documents each; by default 2x50 on a CPU, 5x50 with at most 8 "
        "layers, 2x10 with --quick, and 20x50 on a GPU",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench model`."""
    parser.add_argument(
        "--model", choices=tuple(SIZES), default="0.6B", help="size of the model; by default 0.6B"
    )
    parser.add_argument(
        "--layers",
        type=positive,
        help="number of layers to keep; by default all layers of a model of that size",
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=positive,
        metavar="TOKENS",
        help="text lengths in tokens; not with --quantize; by default 32 128 512, and on a GPU also 2048 8192",
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        help="approximate total tokens for each text length; this determines how many texts of that length are used; "
        "not with --quantize; by default 65536 on a GPU, 1024 on a CPU",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=3,
        help="number of rounds; medians are reported; by default 3",
    )
    parser.add_argument(
        "--quantize",
        choices=QUANTIZE,
        help="compare the model quantised to 8 bits with the unquantised one; by default only the unquantised model "
        "is timed",
    )
    parser.add_argument("--quick", action="store_true", help=f"with --quantize, {_QUICK}")
    parser.add_argument(
        "--dtype",
        choices=DTYPES[:2],
        help="dtype of the model; by default float32 on a CPU, bfloat16 on a GPU",
    )
    parser.add_argument(
        "--no-cuda-graphs",
        dest="cuda_graphs",
        action="store_false",
        help="launch GPU kernels one by one; by default small batches use CUDA graphs",
    )
    _add_device(parser)
    _add_json(parser)
    _add_plot(
        parser, "plot tokens per second by length to this .svg or .png file; not with --quantize"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:1; by default a GPU if there is one, else the CPU"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        type=json_lines_file,
        metavar="FILE",
        help="write each result to this .jsonl file as soon as it is measured",
    )


def _add_plot(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--plot", type=path, metavar="FILE", help=about)
