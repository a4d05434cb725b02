"""From a batch's tensor to each text's vector or error: no vector without a direction is returned."""

from pathlib import Path

import pytest
import torch
from helpers.messages import refusal
from torch import Tensor

from lastword import Embedder, InputError
from lastword.batching.forest import plan_forests
from lastword.model.postprocess import VectorFormat, postprocess, to_precision
from lastword.runtime.results import FinishedBatch, Group, Item, embed_task, finish_batch
from lastword.runtime.runner import StatesTask, Task

C = 16
ZERO = "its vector is zero or not finite"
IN_HALF = "its vector is zero or not finite in float16"


def finish(states: Tensor, formats: list[VectorFormat], task: Task | None = None) -> FinishedBatch:
    """Finish a batch whose texts have these final states [N, C], in order, and these formats."""
    items = [Item(i, [i + 1], each) for i, each in enumerate(formats)]
    (forest,) = plan_forests([item.ids for item in items], 1000)
    group, states = Group(items, [forest], 0.0), states[forest.texts]
    if task is None:
        wanted = embed_task(group, forest)
        states = postprocess(states, wanted.dim or C, normalize=wanted.normalize)
    return finish_batch(group, forest, states, task, 0.0)


def states_with(value: float, column: int) -> Tensor:
    """States of five texts, of which the last is zero but for one value."""
    states = torch.randn(5, C)
    states[4] = 0
    states[4, column] = value
    return states


BAD = {"zero": 0.0, "tiny": 1e-13, "huge": 1e20, "nan": torch.nan, "inf": torch.inf}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "ubinary"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("others", [8, C])
def test_a_vector_without_a_direction_is_an_error(
    value: float, precision: str, normalize: bool, others: int
) -> None:
    """The same in batches of one format, and of several, where the kept dimensions decide too."""
    wanted = VectorFormat(8, normalize, precision)
    formats = [VectorFormat(others, normalize, precision)] * 2 + [wanted] * 3
    bad = finish(states_with(value, 3), formats)
    assert list(bad.errors) == [4]
    error = bad.errors[4]
    assert isinstance(error, InputError)
    assert (error.where, error.what, error.index) == ("text 4", ZERO, 4)
    states = torch.randn(5, C)
    states[4, 12] = value  # cut off
    fine = finish(states, [*formats[:2], wanted, wanted, wanted])
    assert not {2, 3, 4} & fine.errors.keys()
    results = dict(fine.results())
    expected = to_precision(postprocess(states, 8, normalize=normalize), precision)
    assert torch.equal(torch.stack([results[i] for i in (2, 3, 4)]), expected[2:])


@pytest.mark.parametrize(("value", "what"), [(1e5, IN_HALF), (1e-9, IN_HALF), (1e20, ZERO)])
@pytest.mark.parametrize("others", ["float16", "float32"])
def test_a_vector_that_float16_cannot_hold(value: float, what: str, others: str) -> None:
    formats = [VectorFormat(C, normalize=False, precision=others)] * 2
    formats += [VectorFormat(C, normalize=False, precision="float16")] * 3
    batch = finish(states_with(value, 3), formats)
    assert {i: error.what for i, error in batch.errors.items()} == {4: what}
    normalised = [VectorFormat(C, normalize=True, precision="float16")] * 5
    assert list(finish(states_with(value, 3), normalised).errors) == ([4] if what == ZERO else [])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_hidden_state_that_is_not_finite(value: float) -> None:
    states = torch.randn(5, 3, C)
    states[2, 1:, 7] = value
    states[3, 0] = 0  # a state of zeros is one
    batch = finish(states, [None] * 5, StatesTask((0, 5, 9)))
    assert list(batch.errors) == [2]
    error = batch.errors[2]
    assert (error.what, error.got) == (
        "its hidden state is not finite",
        "a NaN or an infinity in layer 5",
    )


def test_a_damaged_model_gives_no_vectors(tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, device="cpu")
    norm = embedder.loop.runner.model.norm
    whole = norm.clone()
    for damage, normalize in ((0.0, True), (0.0, False), (torch.nan, True), (1e30, False)):
        norm.copy_(whole * damage)
        for precision in ("float32", "float16", "int8", "binary"):
            with refusal(InputError, where="text 0", what=ZERO, index=0):
                embedder.encode(["a", "b"], precision=precision, normalize_embeddings=normalize)
    with refusal(InputError, where="text 0", what="its hidden state is not finite"):
        norm.copy_(whole * torch.inf)
        embedder.hidden_states(["a", "b"])
    assert embedder.hidden_states(["a"], [0, 1]).isfinite().all()
