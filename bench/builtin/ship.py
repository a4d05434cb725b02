"""From trained runs to the shipped folder: merge, judge every candidate as it would ship, keep the best.

Writes the model card too.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lastword.bench.builtin.card import compose
from lastword.bench.builtin.evaluate import judge, markdown, read_exam
from lastword.bench.builtin.student import MAX_LENGTH, QUERY_PROMPT, SIZES
from lastword.bench.multislerp import multislerp
from lastword.weights import write_safetensors

MERGE = "merge"
CRITERIA = ("ndcg@10", "spearman", "questions@1")  # one a part, weighed alike


def ship(cache: Path, start: str, bags: Mapping[str, float], teacher: Path, out: Path) -> str:
    """Write the best candidate to `out` and return the table of all scores.

    Args:
        cache: make.py's folder, with the runs' checkpoints in fp32 under `made`.
        start: the run that the bags began from; judged, not shipped.
        bags: run -> its share of the texts, the weight of its part in the merge.
        teacher: the teacher's folder.
        out: the folder to ship; files of the same name are replaced.
    """
    made, candidates = cache / "made", cache / "candidates"
    parts = {name: load_file(made / name / "model.safetensors") for name in (start, *bags)}
    trained = [parts[name] for name in bags]
    parts[MERGE] = {
        key: multislerp([part[key] for part in trained], list(bags.values())) for key in trained[0]
    }
    for name, tensors in parts.items():
        shutil.copytree(made / start, candidates / name, dirs_exist_ok=True)
        _store(tensors, candidates / name)
    table = judge([candidates / name for name in parts], teacher, cache)
    best = max([*bags, MERGE], key=lambda name: sum(table[name][each] for each in CRITERIA))
    shutil.copytree(candidates / best, out, dirs_exist_ok=True)
    runs = (cache / "runs" / f"{name}.jsonl" for name in (start, *bags))
    log = [json.loads(line) for run in runs for line in run.read_text().splitlines()]
    card = compose(best, table, log, _facts(cache, parts[best], bags))
    (out / "README.md").write_text(card, encoding="utf-8")
    return markdown(table)


def _store(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Round to bf16 and say so in config.json."""
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", rounded, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype"] = str(torch.bfloat16).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _facts(cache: Path, tensors: Mapping[str, Tensor], bags: Mapping[str, float]) -> dict[str, Any]:
    exam = read_exam(cache / "corpus")
    archives = sorted(path.name for path in (cache / "archives").iterdir())
    with (cache / "corpus" / "train.jsonl").open(encoding="utf-8") as file:
        gathered = sum(1 for _ in file)
    return {
        "millions": sum(tensor.numel() for tensor in tensors.values()) / 1e6,
        "dim": SIZES["hidden_size"],
        "layers": SIZES["num_hidden_layers"],
        "length": MAX_LENGTH,
        "prompt": QUERY_PROMPT,
        "passages": len(exam.passages),
        "sentences": len(exam.sentences),
        "vocabulary": len(tensors["embed_tokens.weight"]),
        "gathered": gathered,
        "archives": ", ".join(f"`{name.replace('%3a', ':')}`" for name in archives),
        "bags": len(bags),
        "shares": ", ".join(f"{share:.0%}" for share in bags.values()),
    }
