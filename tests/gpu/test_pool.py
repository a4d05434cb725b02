"""A worker process for each GPU there is, be it one: the vectors of the model in this process."""

from pathlib import Path

from lastword import Embedder
from lastword.runtime.device import choose_devices
from lastword.runtime.pool import Pool
from lastword.runtime.runner import ModelLoader

TEXTS = [f"text number {i % 97} " * (i % 5 + 1) for i in range(500)]


def test_the_vectors_of_one_gpu(tiny_checkpoint: Path) -> None:
    alone = Embedder(tiny_checkpoint, device="cuda:0", max_batch_tokens=200)
    load = ModelLoader(alone.info.checkpoint, alone.info.config, alone.info.dtype)
    pool = Pool(load, choose_devices("cuda:all"))
    with Embedder(tiny_checkpoint, device="cuda:0", max_batch_tokens=200, runner=pool) as several:
        vectors = several.encode(TEXTS)
    assert float((vectors - alone.encode(TEXTS)).abs().max()) <= 1e-6
