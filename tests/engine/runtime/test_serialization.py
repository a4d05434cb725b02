"""Messages between processes: tensors of any kind arrive unchanged, and only their own elements are sent."""

from pathlib import Path

import pytest
import torch

from lastword import InputError
from lastword.batching.forest import plan_forests
from lastword.runtime.serialization import pack, unpack
from lastword.weights import Checkpoint, read_config

TENSORS = {
    "fp32": torch.randn(3, 5),
    "bf16": torch.randn(7).bfloat16(),
    "int64": torch.arange(9).view(3, 3),
    "bool": torch.tensor([True, False]),
    "a column": torch.randn(4, 6)[:, 2],
    "transposed": torch.randn(4, 6).T,
    "a number": torch.tensor(3.5),
    "empty": torch.empty(0, 8),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name: str) -> None:
    tensor = TENSORS[name]
    arrived = unpack(pack({"it": tensor}))["it"]
    assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(arrived, tensor)
    arrived.zero_()  # it is writable


def test_a_slice_is_sent_without_the_rest() -> None:
    assert len(pack(torch.zeros(1_000_000)[:10])) < 500


def test_a_forest_and_a_checkpoint(tiny_checkpoint: Path) -> None:
    (forest,) = plan_forests([[1, 2, 3] * 5, [1, 2, 3] * 5, [4]], 100)
    arrived = unpack(pack(forest))
    assert arrived.segments == forest.segments
    assert all(
        torch.equal(getattr(arrived, n), getattr(forest, n)) for n in ("ids", "texts", "distinct")
    )
    checkpoint = Checkpoint(tiny_checkpoint, read_config(tiny_checkpoint))
    data = pack(checkpoint)
    assert len(data) < 20_000, "headers only, no weights"
    assert unpack(data).fingerprint == checkpoint.fingerprint


def test_an_error_keeps_its_index() -> None:
    error = unpack(pack(InputError("text 5", "bad", index=5)))
    assert (type(error), str(error), error.index) == (InputError, "text 5: bad.", 5)
