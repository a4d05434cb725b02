"""Batches padded to buckets, and replayed if their bucket is recorded, give unchanged states with the real kernels."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.kernels.stub_recorder import StubRecorder
from helpers.transformers_reference import difference, load_ours

from lastword import kernels
from lastword.batching.forest import Forest, plan_forests
from lastword.bench.checkpoint import make_checkpoint
from lastword.model.qwen3 import Model

# Tiles without rows divide 0 by 0, so NumPy warns; nothing of theirs is stored.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BATCHES: dict[str, list[list[int]]] = {
    "one row": [[1]],
    "full bucket": [list(range(1, 17))],
    "one row over a bucket": [list(range(1, 18))],
    "prompt": [[7] * 12 + [1, 2, 3], [7] * 12 + [4] * 5, [5], [7] * 10],
    "levels": [[1] * 8 + [2] * 8 + [3] * 3, [1] * 8 + [2] * 8 + [4] * 5, [1] * 8 + [5] * 2],
    "as many texts as rows": [[n] for n in range(1, 17)],
    "equal texts": [[3, 4], [3, 4], [9]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("padded"), hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, vocab_size=300,
    )  # fmt: skip


@pytest.fixture
def model(folder: Path) -> Model:
    """A model that takes batches unpacked until it is set to pack them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET")
        return load_ours(folder)


def pack(tokens: list[list[int]]) -> Forest:
    (forest,) = plan_forests(tokens, 10**6)
    return forest


def on_cpu(model: Model, forest: Forest) -> torch.Tensor:
    """Return the states of the CPU implementation, before the model is set to pack batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET")
        return model.forward(forest)


@pytest.mark.parametrize("name", BATCHES)
def test_nothing_of_padding_reaches_a_vector(name: str, model: Model) -> None:
    """Padding is token 0: with a NaN embedding, every padding row is NaN from the start."""
    forest = pack(BATCHES[name])
    model.embedding = model.embedding.float().index_fill(0, torch.tensor([0]), torch.nan)
    expected = on_cpu(model, forest)
    model.use_packing(None)
    states = model.forward(forest)
    assert states.shape == (len(forest.final_rows), 48)
    assert difference(states, expected) <= 1e-6


def test_observers_see_the_batch_without_padding(model: Model) -> None:
    forest, seen = pack(BATCHES["prompt"]), []
    expected = on_cpu(model, forest)
    model.use_packing(StubRecorder())
    states = model.forward(forest, lambda _, states: seen.append(len(states)))
    assert difference(states, expected) <= 1e-6
    assert seen == [forest.tokens_computed, len(forest.final_rows)]


def test_padding_holds_numbers(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is filled with NaN before each launch: what attention left unwritten would show."""
    seen: list[torch.Tensor] = []
    plain = kernels.forest_attention

    def attention(*args: Any) -> torch.Tensor:
        out = plain(*args)
        seen.append(out)
        return out

    monkeypatch.setattr(kernels, "forest_attention", attention)
    model.use_packing(StubRecorder())
    for name, tokens in BATCHES.items():
        forest = pack(tokens)
        layout, buffer = model._packer.pack(forest)
        assert layout.bucket is not None
        with torch.inference_mode():
            states = model._forward(layout.read(buffer))
        assert len(states) == layout.finals, name
        assert bool(states.isfinite().all()), name
        assert all(bool(out.isfinite().all()) for out in seen), name


def test_recorded_batches_do_not_mix(model: Model) -> None:
    draw = random.Random(0)
    batches = [
        pack([[draw.randrange(300) for _ in range(draw.randrange(2, 8))] for _ in range(2)])
        for _ in range(2)
    ]
    recorder = StubRecorder()
    model.use_packing(recorder)
    launched = [model.forward(batch) for batch in batches]
    assert recorder.recorded == 0, "no request waits for a recording"
    model.warm_up(16)
    assert recorder.rehearsed == recorder.recorded == 5
    order = [0, 1, 0]
    replayed = [model.forward(batches[i]) for i in order]  # all kept while others run
    for i, states in zip(order, replayed, strict=True):
        assert torch.equal(states, launched[i]), "the bits of the same batch unrecorded"
    assert recorder.replayed == len(order)
    pointers = {states.data_ptr() for states in replayed}
    assert len(pointers) == len(order), "states are copied out"


def test_a_batch_whose_bucket_is_not_recorded_is_launched(model: Model) -> None:
    forest = pack([[1] * 9, [2] * 4, [3] * 5])
    plain = on_cpu(model, forest)
    recorder = StubRecorder()
    model.use_packing(recorder)
    model.warm_up(16)
    assert difference(model.forward(forest), plain) <= 1e-6
    assert recorder.replayed == 0
    model.forward(pack([[1] * 9]))
    assert recorder.replayed == 1
