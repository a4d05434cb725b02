"""Compute the teacher's vectors of all training texts once, and store them one shard at a time.

A run that was stopped continues with the first missing shard.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lastword.weights import write_safetensors

SHARD = 4096
BATCH = 32


class Teacher:
    """The teacher in sentence-transformers: it turns texts into normalised vectors [N, 384].

    In bf16 the teacher is twice as fast on a CPU that supports bf16. The cosine between its bf16 and fp32 vectors is
    above 0.9999, which is enough to learn from. For the scores of the teacher itself, fp32 is used.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from sentence_transformers import SentenceTransformer

        self.folder = folder
        self.model = SentenceTransformer(str(folder), device="cpu").to(dtype)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; a text of more than 256 word pieces, the teacher's limit, is cut."""
        vectors: Tensor = self.model.encode(
            list(texts), batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False
        )
        return torch.nn.functional.normalize(vectors.float())


def read_items(corpus: Path) -> list[dict[str, str]]:
    """Read the items of train.jsonl in the order of the file."""
    with (corpus / "train.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def embed_corpus(teacher: Path, corpus: Path, out: Path) -> None:
    """Embed the texts and queries of `train.jsonl`, and store the vectors in fp16; shard i begins at item 4096·i.

    A shard is a safetensors file with the tensors `text` and `query`.
    """
    out.mkdir(parents=True, exist_ok=True)
    items = read_items(corpus)
    count = -(-len(items) // SHARD)
    paths = [out / f"{i:04d}.safetensors" for i in range(count)]
    if all(path.exists() for path in paths):
        return
    model = Teacher(teacher, torch.bfloat16)
    for i, path in enumerate(paths):
        if path.exists():
            continue
        began = time.perf_counter()
        part = items[i * SHARD : (i + 1) * SHARD]
        texts = [item["text"] for item in part]
        queries = [item["query"] for item in part if "query" in item]
        vectors = model.encode(texts + queries).half()
        write_safetensors(path, {"text": vectors[: len(texts)], "query": vectors[len(texts) :]})
        seconds = time.perf_counter() - began
        print(
            f"teacher: shard {i + 1} of {count}, {len(texts) / seconds:.0f} texts per second",
            flush=True,
        )


def read_vectors(folder: Path) -> tuple[Tensor, Tensor]:
    """Read the shards in order; return the vectors of the texts and the vectors of the queries, in fp16."""
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return torch.cat([p["text"] for p in parts]), torch.cat([p["query"] for p in parts])
