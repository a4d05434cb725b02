"""A worker process for each GPU there is, be it one: the vectors of the model in this process."""

from functools import partial
from pathlib import Path

import torch

from lastword import Embedder
from lastword.model.qwen3 import Model
from lastword.report import Report
from lastword.runtime.device import choose_devices
from lastword.runtime.encoder import Encoder
from lastword.runtime.pool import Pool

TEXTS = [f"text number {i % 97} " * (i % 5 + 1) for i in range(500)]


def test_the_vectors_of_one_gpu(tiny_checkpoint: Path) -> None:
    alone = Embedder(tiny_checkpoint, device="cuda:0", max_batch_tokens=200)
    load = partial(Model, alone.checkpoint, alone.config, dtype=alone.dtype)
    pool = Pool(load, choose_devices("cuda:all"))
    try:
        options = alone._options(None, None)
        encoder = Encoder(alone._tokenizer, pool, alone.config.hidden_size, 200)
        windows = list(encoder.windows(TEXTS, options, Report(), lambda _: None))
    finally:
        pool.close()
    assert float((torch.cat(windows) - alone.encode(TEXTS)).abs().max()) <= 1e-6
