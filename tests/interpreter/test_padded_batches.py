"""Batches padded to buckets, and recorded once per bucket, give unchanged states with the real kernels."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.transformers_reference import difference, load_ours

from lastword.batching.forest import Forest, plan_forests
from lastword.bench.checkpoint import make_checkpoint
from lastword.errors import LastwordWarning
from lastword.model.qwen3 import Model

# Padding rows compute with NaN, and last-token rows of padding divide 0 by 0, so NumPy warns.
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


class StubCapture:
    """A stand-in for CUDA graphs: a replay runs the recorded function again; nothing else is kept."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


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
    model.use_packing(StubCapture())
    states = model.forward(forest, lambda _, states: seen.append(len(states)))
    assert difference(states, expected) <= 1e-6
    assert seen == [forest.tokens_computed, len(forest.final_rows)]


def test_a_bucket_is_recorded_once_and_batches_do_not_mix(model: Model) -> None:
    draw = random.Random(0)
    batches = [
        pack([[draw.randrange(300) for _ in range(draw.randrange(2, 8))] for _ in range(2)])
        for _ in range(2)
    ]
    model.use_packing(None)
    eager = [model.forward(batch) for batch in batches]
    capture = StubCapture()
    model.use_packing(capture)
    order = [0, 1, 0]
    replayed = [model.forward(batches[i]) for i in order]  # all kept while others run
    for i, states in zip(order, replayed, strict=True):
        assert torch.equal(states, eager[i]), (
            "a batch's states are those of the same batch unrecorded"
        )
    buckets = len({model._packer.pack(batch)[0] for batch in batches})
    assert (capture.recorded, capture.replayed) == (buckets, len(order))
    pointers = {states.data_ptr() for states in replayed}
    assert len(pointers) == len(order), "states are copied out"


def test_a_batch_beyond_all_buckets_is_not_recorded(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lastword.batching.packing.MAX_BUCKET_ROWS", 12)
    forest = pack([[1] * 9, [2] * 4])
    plain = on_cpu(model, forest)
    capture = StubCapture()
    model.use_packing(capture)
    assert difference(model.forward(forest), plain) <= 1e-6
    assert capture.recorded == 0
    model.forward(pack([[1] * 9]))
    assert capture.recorded == 1


def test_a_bucket_that_cannot_be_recorded_is_launched_kernel_by_kernel(model: Model) -> None:
    forest, tried = pack([[1, 2, 3]]), []
    expected = on_cpu(model, forest)

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        tried.append(run)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model.use_packing(capture)
    with pytest.warns(LastwordWarning) as caught:
        first = model.forward(forest)
    (warning,) = (each.message for each in caught if isinstance(each.message, LastwordWarning))
    assert warning.what == "a batch of 16 rows could not be recorded"
    assert warning.got == "'operation not permitted when stream is capturing'"
    again = model.forward(forest)
    assert difference(first, expected) <= 1e-6
    assert torch.equal(first, again)
    assert len(tried) == 1


def test_a_recording_without_memory_is_made_again(model: Model) -> None:
    forest, fails = pack([[1, 2, 3]]), [torch.OutOfMemoryError("full")]
    expected = on_cpu(model, forest)

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        if fails:
            raise fails.pop()
        return run

    model.use_packing(capture)
    with pytest.raises(torch.OutOfMemoryError):
        model.forward(forest)
    assert difference(model.forward(forest), expected) <= 1e-6
