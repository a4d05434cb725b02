"""The state that a caller has put PyTorch in changes no vector, and is as it was afterwards."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from helpers.caller_states import STATES, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lastword import Embedder, InputError

TEXTS = [
    *(f"these words begin every one of the texts, and {i} tells them apart" for i in range(4)),
    "",
    "short",
]
# Long enough for PyTorch's own attention in every layer.
LONG = "the cat sat on the mat and " * 250
MODELS: dict[str, dict[str, str]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
}
ACTIONS: dict[str, Callable[[Embedder], Tensor]] = {
    "encode": lambda model: model.encode(TEXTS),
    "long": lambda model: model.encode(LONG),
    "nothing": lambda model: model.encode([]),
    "query": lambda model: model.encode_query(TEXTS[:3], truncate_dim=16),
    "stream": lambda model: torch.stack(list(model.encode_stream(TEXTS))),
    "hidden states": lambda model: model.hidden_states(TEXTS[:4]),
    "no hidden states": lambda model: model.hidden_states([]),
    **{
        precision: lambda model, precision=precision: model.encode(TEXTS[:2], precision=precision)
        for precision in ("float16", "int8", "ubinary", "binary")
    },
    "ranges": lambda model: model.encode(
        TEXTS[:2], precision="uint8", ranges=[[-0.5] * model.info.dim, [0.5] * model.info.dim]
    ),
}


class Answers(dict[tuple[str, str], Tensor]):
    """What each model answers to each action in PyTorch's state at the start."""

    __repr__ = object.__repr__  # short in reports


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, one_thread: None) -> Path:
    return tiny_checkpoint


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Embedder]:
    """The models, opened in PyTorch's state at the start."""
    return {name: Embedder(folder, **options) for name, options in MODELS.items()}


@pytest.fixture(scope="module")
def plain(models: dict[str, Embedder]) -> Answers:
    return Answers(
        {(name, act): ACTIONS[act](model) for name, model in models.items() for act in ACTIONS}
    )


def check(model: Embedder, act: str, expected: Tensor) -> None:
    before = snapshot()
    got = ACTIONS[act](model)
    assert snapshot() == before
    assert (got.dtype, got.device, got.shape) == (expected.dtype, expected.device, expected.shape)
    assert not got.requires_grad
    assert torch.equal(got, expected)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", MODELS)
def test_each_state(
    models: dict[str, Embedder],
    plain: Answers,
    folder: Path,
    name: str,
    state: str,
) -> None:
    with STATES[state]():
        inside = Embedder(folder, **MODELS[name])
        for act in ACTIONS if name == "float32" else ("encode", "long", "stream"):
            check(models[name], act, plain[name, act])
        check(inside, "encode", plain[name, "encode"])
    check(inside, "encode", plain[name, "encode"])


@settings(max_examples=20, deadline=None)
@given(
    inside=st.lists(st.sampled_from(sorted(STATES)), max_size=4, unique=True),
    loading=st.lists(st.sampled_from(sorted(STATES)), max_size=3, unique=True),
    name=st.sampled_from(sorted(MODELS)),
    acts=st.lists(st.sampled_from(sorted(ACTIONS)), min_size=1, max_size=3),
)
def test_states_together(
    plain: Answers,
    folder: Path,
    inside: list[str],
    loading: list[str],
    name: str,
    acts: list[str],
) -> None:
    with ExitStack() as states:
        for state in loading:
            states.enter_context(STATES[state]())
        model = Embedder(folder, **MODELS[name])
    with ExitStack() as states:
        for state in inside:
            states.enter_context(STATES[state]())
        for act in acts:
            check(model, act, plain[name, act])


def test_results_are_ordinary_tensors_inside_inference_mode(models: dict[str, Embedder]) -> None:
    with torch.inference_mode():
        results = [act(models["float32"]) for name, act in ACTIONS.items() if name != "stream"]
        results += list(models["float32"].encode_stream(TEXTS))
    assert not any(result.is_inference() for result in results)
    weight = torch.ones(results[0].shape[1], requires_grad=True)
    (results[0] @ weight).sum().backward()  # an inference tensor cannot be saved for this
    assert weight.grad is not None


def test_similarity(models: dict[str, Embedder], plain: Answers) -> None:
    model, a = models["float32"], plain["float32", "encode"]
    expected, pairs = model.similarity(a, a[:3]), model.similarity_pairwise(a, a.flip(0))
    listed = model.similarity(a.tolist(), a[:3].tolist())
    for state in STATES.values():
        with state():
            before = snapshot()
            assert torch.equal(model.similarity(a, a[:3]), expected)
            assert torch.equal(model.similarity_pairwise(a, a.flip(0)), pairs)
            assert torch.equal(model.similarity(a.tolist(), a[:3].tolist()), listed)
            assert snapshot() == before


@pytest.mark.parametrize("state", ["autocast to bfloat16", "matmuls medium", "without oneDNN"])
def test_an_error_changes_no_state(models: dict[str, Embedder], state: str) -> None:
    with STATES[state]():
        before = snapshot()
        with pytest.raises(InputError):
            models["float32"].encode(["fine", "\ud800"])
        assert snapshot() == before


def test_a_changed_number_of_threads(models: dict[str, Embedder], plain: Answers) -> None:
    stream = models["float32"].encode_stream(TEXTS * 800)
    first = [next(stream) for _ in TEXTS]
    torch.set_num_threads(2)
    try:
        rest = [next(stream) for _ in range(799 * len(TEXTS))]
    finally:
        torch.set_num_threads(1)
    for got in (first, rest[-len(TEXTS) :]):
        torch.testing.assert_close(torch.stack(got), plain["float32", "stream"], rtol=0, atol=1e-6)
