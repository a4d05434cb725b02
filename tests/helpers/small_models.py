"""Make small models, recipes for merging them, and small rerankers; and name a model in a hub cache."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from lastword.bench.checkpoint import END, make_checkpoint, make_tokenizer

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

DROP = object()  # a value that makes `change_file` remove its key

# The commit and the name of the model that tests put into a hub cache.
COMMIT = "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3"
NAME = "owner/model"


def snapshot_of(cache: Path) -> Path:
    """Return the folder of the model `NAME` in a hub cache."""
    return cache / "models--owner--model" / "snapshots" / COMMIT


def model(folder: Path, seed: int = 0, **options) -> str:
    return str(make_checkpoint(folder, seed=seed, **{**SMALL, **options}))


def change_file(folder: Path, file: str, values: dict[str, Any] | list[Any]) -> Path:
    """Change keys of a JSON file, or create the file; a list replaces the whole content."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    if isinstance(values, dict):
        before = json.loads(path.read_text()) if path.exists() else {}
        values = {key: value for key, value in (before | values).items() if value is not DROP}
    path.write_text(json.dumps(values))
    return path


def recipe_text(models, weights, method="multislerp", **others) -> str:
    listed = [
        {"model": str(name), **({"parameters": {"weight": weight}} if weight is not None else {})}
        for name, weight in zip(models, weights, strict=True)
    ]
    return yaml.safe_dump({"models": listed, "merge_method": method, **others})


# Qwen3-Reranker's model card puts PREFIX and SUFFIX around the instruction, the query and the document.
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
# The same as a chat template for pairs.
TEMPLATE = (
    PREFIX
    + '<Instruct>: {{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first'
    + f' | default("{INSTRUCTION}") }}}}\n<Query>: '
    + '{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n<Document>: '
    + '{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}'
    + SUFFIX
    + "\n"
)
KINDS = ("tied", "untied", "classifier")


def make_reranker(folder: Path, kind: str = "tied", *, seed: int = 0, **options) -> Path:
    """Write a reranker without the files of sentence-transformers, as Qwen and others publish rerankers."""
    texts = [PREFIX, SUFFIX, INSTRUCTION, 'yes no "yes" or "no"', "yes", "no"] * 4
    tokenizer = make_tokenizer(texts, end_token=kind == "classifier")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.json"
    tokenizer.save(str(source))
    sizes = {"hidden_size": 64, "intermediate_size": 96, **options}
    make_checkpoint(
        folder, tokenizer=source, tied=kind == "tied", seed=seed, prefix="model.",
        sentence_transformers=False, **sizes,
    )  # fmt: skip
    source.unlink()
    tensors = load_file(folder / "model.safetensors")
    rows, width = tensors["model.embed_tokens.weight"].shape
    head = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed + 99)) * 0.5
    tensors.pop("lm_head.weight", None)
    if kind == "untied":
        tensors["lm_head.weight"] = head
    elif kind == "classifier":
        tensors["score.weight"] = head[:1].clone()
        names = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        names |= {"pad_token_id": tokenizer.token_to_id(END)}
        architectures = ["Qwen3ForSequenceClassification"]
        change_file(folder, "config.json", {"architectures": architectures, **names})
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def save_reranker(folder: Path, source: Path) -> Path:
    """Save a reranker with sentence-transformers, with a chat template and its own instructions."""
    from sentence_transformers import CrossEncoder

    prompts = {"web": "Find the passage", "other": "Find another"}
    model = CrossEncoder(
        str(source), device="cpu", processor_kwargs={"chat_template": TEMPLATE},
        prompts=prompts, default_prompt_name="web",
    )  # fmt: skip
    model.save_pretrained(str(folder))
    return folder
