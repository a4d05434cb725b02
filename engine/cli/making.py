"""The commands that make models: options and help of `merge`, `convert` and `bags`.

What they do is in the module of each one's name, imported when it runs.
"""

import argparse
import re
from collections.abc import Callable

MERGE_EXAMPLES = """example: merge.yaml, read as mergekit reads it
  models:
    - model: ./stage-1
      parameters: {weight: 2.8}
    - model: ./stage-2
      parameters: {weight: 4.3}
  merge_method: multislerp
  dtype: float32

  lastword merge merge.yaml ./merged --report tensors.jsonl

A model is a folder or a Hugging Face id; id@revision names a branch, tag or commit of it.

Methods: linear (weight; normalize), multislerp (weight; normalize_weights; base_model if any),
task_arithmetic (weight; lambda, normalize; base_model), slerp (t, from base_model to the other
model). dtype or out_dtype is that of the result; by default it stays as stored. Inner products and
sums are in float64, each value is rounded once. Needs PyYAML: pip install 'lastword[merge]'.

The report has a JSON object a tensor: norms and angles of the models' tensors (less the base's),
their coefficients, and the norm of their sum. A run that was stopped is taken up by running it
again."""

CONVERT_EXAMPLES = """examples:
  lastword convert Qwen/Qwen3-Embedding-0.6B ./model-f32 --dtype f32
  lastword convert owner/model@v1.0 ./model --dtype bf16
  lastword convert ./model-f32 ./model-bf16 --dtype bf16 --shard-size 2GB

id@revision names a branch, tag or commit of a Hugging Face id."""

BAGS_EXAMPLES = """examples:
  lastword bags msmarco.jsonl nli.jsonl --ratios 80,100 --seed 7 -o plan.json
  lastword bags new.jsonl --old msmarco.jsonl nli.jsonl --ratios 100 --seed 8 -o update.json \\
      --into ./released --weights size

Each file is a dataset, sampled by itself without replacement; a row is a line. Beside plan.json
come plan.rows/BAG/DATASET.txt, a row id a line, and plan.merge.yaml, the recipe for lastword
merge. The same seed gives the same plan, whatever the order of the files and the machine. Bags
of old and new data serve a model that is trained on the new data and merged into the old one."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def byte_size(text: str) -> int:
    """Read a size such as 500MB or 5GB, in powers of 1000 as the field cuts shards."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a size such as 500MB or 5GB")
    return size


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add where the new model goes and how it is cut into files."""
    parser.add_argument("out", metavar="OUT", help="the new folder, there when whole or not at all")
    parser.add_argument(
        "--shard-size",
        type=byte_size,
        default="5GB",
        metavar="SIZE",
        help="weights a file, such as 500MB (5GB); an interrupted run keeps its finished files",
    )
    parser.add_argument("--local-files-only", action="store_true", help="do not use the network")
    parser.add_argument("--quiet", action="store_true", help="no progress, notices or report")


def _merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the recipe, a YAML file")
    add_folder_options(parser)
    parser.add_argument("--report", metavar="FILE", help="write what was done to each tensor here")


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hugging Face id or folder")
    add_folder_options(parser)
    parser.add_argument(
        "--dtype", choices=("bf16", "f16", "f32"), help="of the weights; by default as they are"
    )


def _bags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="DATA", help="FILE or NAME=FILE; .jsonl, .txt")
    parser.add_argument(
        "--ratios", required=True, help="percent of each dataset a bag, such as 80,100 or 50,rest"
    )
    parser.add_argument("--seed", type=int, required=True, help="what the choice depends on")
    parser.add_argument("-o", "--output", required=True, metavar="PLAN", help="a new .json file")
    parser.add_argument(
        "--old", nargs="+", default=[], metavar="DATA", help="data trained on before"
    )
    parser.add_argument(
        "--old-ratio", default="40", metavar="PERCENT", help="of the old data in each bag (40)"
    )
    parser.add_argument("--id-field", metavar="NAME", help="name rows by this field of .jsonl")
    parser.add_argument(
        "--weights", choices=("equal", "size"), default="equal", help="of the models in the recipe"
    )
    parser.add_argument("--into", metavar="MODEL", help="merge the new models into this one")
    parser.add_argument("--quiet", action="store_true", help="no progress and no report")


# name: what it is for, its examples, its options
COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "merge": ("make a new model of several", MERGE_EXAMPLES, _merge),
    "convert": (
        "write a model in another dtype or files of another size",
        CONVERT_EXAMPLES,
        _convert,
    ),
    "bags": ("plan subsets of data to train models on", BAGS_EXAMPLES, _bags),
}
