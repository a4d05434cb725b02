"""`lastword info`: describe a model and how it would run on this machine; with `--full`, check its files.

No weights are loaded, so a model that does not fit into memory can be described too. `--full` hashes the files before
the model is opened, because a damaged model may not open.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from lastword.cli import console, options
from lastword.cli.documents.written import metadata_of
from lastword.errors import InputError, WeightsError, list_some, printable

if TYPE_CHECKING:
    from lastword.model_info import ModelInfo
    from lastword.reranker_info import RerankerInfo
    from lastword.weights import FileHash

ABOUT = "describe a model and check its files"
EXAMPLES = """examples:
  lastword info Qwen/Qwen3-Embedding-0.6B
  lastword info ./model --full --json
  lastword info Qwen/Qwen3-Reranker-0.6B

On a CPU, the keys and values of a prompt are computed once and then kept. The field prompt_cache shows the limits: how
many prompts and bytes are kept, how many bytes a token takes, and the most tokens that a prompt can have if it is to
be kept. The least recently used prompt is dropped first."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    options.add_name(parser)
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also hash the weights and JSON files, and compare each hash with the Hugging Face Hub's, which is known "
        "only for files in the Hub's cache; the exit status is 1 if a file is damaged",
    )
    options.add_model_options(parser, kinds=options.EITHER_KIND, computes=False)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    options.choose_model(args)
    if args.model is not None and os.path.isfile(args.model):
        _refuse_vectors(args.model)
    hashes = _hashes(args) if args.full else []
    damaged = [each.file for each in hashes if each.whole is False]
    facts: dict[str, object] = {"damaged": damaged}
    if not damaged:
        facts = describe(_open(args))
    if args.full:
        facts["files"] = [asdict(each) for each in hashes]
    if args.json:
        console.print_lines([json.dumps(facts, ensure_ascii=False, indent=2)])
    else:
        console.print_lines(list(_table(facts)))
    if damaged:
        what = "does not match the hash on the Hugging Face Hub"
        console.say(str(WeightsError(list_some(damaged), what, remedy="Download it again.")))
    return 1 if damaged else 0


def _open(args: argparse.Namespace) -> "ModelInfo | RerankerInfo":
    """Open the model without its weights: as a reranker if its files or its name say that it is one."""
    if options.model_is_reranker(args):
        return options.open_reranker_info(args)
    return options.open_embedder_info(args)


def describe(model: "ModelInfo | RerankerInfo") -> dict[str, object]:
    """Return the facts about an open model, in the order in which they are printed."""
    from lastword.reranker_info import RerankerInfo
    from lastword.weights import dtype_name

    found, checkpoint = model.files, model.checkpoint
    own = _of_reranker(model) if isinstance(model, RerankerInfo) else {"dim": model.dim}
    fingerprints: dict[str, object] = {}
    if not isinstance(model, RerankerInfo):
        run = model.run_fingerprint(model.resolve_prompt())
        fingerprints = {"space": model.space_fingerprint(), "run": run}
    return {
        "model": model.name,
        "kind": "reranker" if isinstance(model, RerankerInfo) else "embedding model",
        "folder": str(found.folder),
        "revision": found.revision,
        "parameters": checkpoint.num_parameters,
        "bytes": checkpoint.num_bytes,
        "stored": ", ".join(checkpoint.dtypes),
        "device": ", ".join(map(str, model.devices)),
        "dtype": dtype_name(model.dtype),
        "quantize": model.quantize,
        **own,
        "max_length": model.max_length,
        "prompts": dict(model.prompts),
        "default_prompt": model.default_prompt_name,
        "prompt_cache": model.prompt_cache,
        **fingerprints,
        "weights": checkpoint.fingerprint,
        "notices": list(model.notices),
        "config": asdict(model.config),
    }


def _of_reranker(model: "RerankerInfo") -> dict[str, object]:
    """Return the facts that only a reranker has: where its scores come from, and its instruction."""
    spec = model.spec
    causal = "embed_tokens" if spec.tied else "lm_head"
    return {
        "head": "score" if spec.classifier else causal,
        "score": "probability" if spec.sigmoid else "log-odds",
        "instruction": model.resolve_instruction({}),
    }


def _refuse_vectors(path: str) -> None:
    """Raise InputError, with the file's metadata, if `path` is a file of vectors that `lastword embed` wrote."""
    found = metadata_of(path)
    if "texts" in found:  # otherwise the file holds other numbers, such as ranges
        texts, dim, model, space = (found.get(key) for key in ("texts", "dim", "model", "space"))
        raise InputError(
            path,
            "holds vectors, not a model",
            got=f"{texts} texts, {dim} dimensions, model {model}, space {space}",
            expected="a model",
            remedy="Name the model.",
        )


def _hashes(args: argparse.Namespace) -> "list[FileHash]":
    from lastword.weights import hash_files, locate

    offline = args.local_files_only
    return hash_files(locate(args.model, revision=args.revision, local_files_only=offline).folder)


def _table(facts: Mapping[str, object]) -> Iterator[str]:
    """Yield one line per fact; the facts of a group are indented below the group's name."""
    for name, value in facts.items():
        if name == "files" and isinstance(value, list):
            yield "files:"
            yield from (_file_line(each) for each in value)
        else:
            yield from _lines(name, value, quoted=name == "prompts")


def _lines(name: str, value: object, *, quoted: bool, depth: int = 0) -> Iterator[str]:
    """Yield the lines of one fact.

    Args:
        name: the name of the fact.
        value: a single value, a list of facts of this name, or a mapping, whose entries are indented below the name.
        quoted: whether to quote strings, to show where a prompt ends.
        depth: the level of indentation.
    """
    indent = "  " * depth
    if isinstance(value, Mapping) and value:
        yield f"{indent}{printable(name)}:"
        for key, each in value.items():
            yield from _lines(str(key), each, quoted=quoted, depth=depth + 1)
    elif isinstance(value, list) and value:
        for each in value:
            yield from _lines(name, each, quoted=quoted, depth=depth)
    else:
        shown = (
            f'"{printable(value)}"' if quoted and isinstance(value, str) else _format_value(value)
        )
        yield f"{indent}{printable(name):<{28 - len(indent)}} {shown}"


def _file_line(each: Mapping[str, object]) -> str:
    verdict = {True: "matches the hub", False: "DAMAGED", None: "no hash known"}
    whole = each["whole"]
    said = verdict[whole if isinstance(whole, bool) else None]
    return f"  {each['file']}  {each['bytes']:,} bytes  sha256 {each['sha256']}  {said}"


def _format_value(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return printable(str(value)) if value or isinstance(value, float) else "none"
