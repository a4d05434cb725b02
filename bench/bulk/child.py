"""Embed a file of JSON lines in one of several ways, as a process of its own; print the figures as a line of JSON.

    python -m lastword.bench.bulk.child WAY IN OUT MODEL THREADS

MODEL is a folder, or "" for the built-in model. THREADS is the number of threads for computing.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Returns the seconds of preparation, which do not count, and a function that counts the embedded rows.
Way = Callable[[str, str, str], tuple[float, Callable[[], int]]]


def _texts(path: str) -> list[str]:
    return [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]


def encode(path: str, _out: str, model: str) -> tuple[float, Callable[[], int]]:
    """Call `encode` with all texts."""
    from lastword import Embedder

    began = time.monotonic()
    embedder = Embedder(model or None, device="cpu", show_progress_bar=False)
    embedder.warm_up()
    texts = _texts(path)
    opened = time.monotonic() - began
    vectors = embedder.encode(texts)
    return opened, lambda: len(vectors)


def pandas(path: str, out: str, model: str) -> tuple[float, Callable[[], int]]:
    """Embed a pandas data frame with sentence-transformers, and write it to a Parquet file."""
    import pandas as pd
    from sentence_transformers import SentenceTransformer

    began = time.monotonic()
    embedder = SentenceTransformer(model, device="cpu")
    embedder.encode(["warm up"])
    opened = time.monotonic() - began
    frame = pd.read_json(path, lines=True)
    frame["embedding"] = list(embedder.encode(frame["text"].tolist()))
    frame.to_parquet(out)
    return opened, lambda: len(frame)


def datasets(path: str, out: str, model: str) -> tuple[float, Callable[[], int]]:
    """Embed with sentence-transformers in `datasets.map`, and write a Parquet file."""
    from datasets import disable_progress_bars, load_dataset
    from sentence_transformers import SentenceTransformer

    disable_progress_bars()
    began = time.monotonic()
    embedder = SentenceTransformer(model, device="cpu")
    embedder.encode(["warm up"])
    opened = time.monotonic() - began
    rows = load_dataset("json", data_files=path, split="train", cache_dir=f"{out}.cache")
    rows = rows.map(
        lambda batch: {"embedding": embedder.encode(batch["text"])}, batched=True, batch_size=1000
    )
    rows.to_parquet(out)
    return opened, lambda: len(rows)


class _RayEmbedder:
    """The callable that Ray Data makes once per actor."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(model, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "embedding": self._model.encode(list(batch["text"]))}


def ray(path: str, out: str, model: str) -> tuple[float, Callable[[], int]]:
    """Embed with sentence-transformers in Ray Data. The time includes the start of the actor and of its model."""
    import ray as ray_core
    import torch

    began = time.monotonic()
    ray_core.init(
        num_cpus=2 * torch.get_num_threads(), log_to_driver=False, logging_level=logging.ERROR
    )
    opened = time.monotonic() - began
    rows = ray_core.data.read_json(path).map_batches(
        _RayEmbedder,
        fn_constructor_args=(model,),
        batch_size=1000,
        concurrency=1,
        num_cpus=torch.get_num_threads(),
    )
    rows.write_parquet(out)
    return opened, lambda: int(ray_core.data.read_parquet(out).count())


WAYS: dict[str, Way] = {each.__name__: each for each in (encode, pandas, datasets, ray)}


def main(way: str, path: str, out: str, model: str, threads: str) -> None:
    """Embed the texts, and print the result."""
    import torch

    from lastword.bench.memory import peak_bytes

    torch.set_num_threads(int(threads))
    began = time.monotonic()
    opened, count_rows = WAYS[way](path, out, model)
    ended = time.monotonic()
    result = {"rows": count_rows(), "seconds": ended - began - opened, "peak_bytes": peak_bytes()}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
