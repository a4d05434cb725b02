"""Every public argument: of a wrong type it is an error of one line; NumPy's integers and bools work as Python's."""

import inspect
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from helpers.messages import refusal

from lastword import ConfigError, Embedder, InputError, LastwordError
from lastword.arguments import as_numbers, short_repr
from lastword.bench.checkpoint import make_checkpoint
from lastword.errors import MissingPackageError
from lastword.report import Report
from lastword.similarity import similarity, similarity_pairwise

TEXTS = ["the cat sat", "a tree"]


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


# An argument takes none of these, unless RIGHT says so or its type allows None: a new one is tried with all.
POOL: dict[str, Any] = {
    "None": None,
    "object": object(),
    "float": 2.5,
    "negative": -1,
    "bytes": b"x",
    "word": "no such thing",
    "digits": "8",
    "empty": "",
    "long": "x" * 10_000,
    "list": [object()],
    "ragged": [[1.0], [1.0, 2.0]],
    "dict": {1: object()},
    "set": {"a", "b"},
    "function": len,
    "class": int,
    "array": np.array([["a", "b"], ["c", "d"]]),
    "tensor": torch.ones(2, 2, 2),
}
STR = {"word", "digits", "empty", "long"}
RIGHT: dict[str, set[str]] = {
    "prompt": STR,
    "model": STR - {"empty"},  # a hub id, which would be looked up
    "revision": STR,
    "cache_dir": STR,
    "token": STR,
    "on_error": {"function", "class"},
    "on_done": {"function", "class"},
    "on_rows": {"function", "class"},
    # For tests, benchmarks and servers: not checked.
    "open_checkpoint": {*POOL},
    "runner": {*POOL},
}
ONE_TEXT = ("encode", "encode_query", "encode_document")


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's arguments and their types; for `**kwargs` those of its TypedDict, or else of `encode`."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            unpacked = get_args(parameter.annotation)
            more = unpacked[0].__annotations__ if unpacked else arguments(Embedder.encode)
            found = {**more, **found}
        elif name != "self":
            found[name] = parameter.annotation
    return found


def wrong_values(name: str, kind: Any, *, one_text: bool = False) -> Iterator[tuple[str, Any]]:
    """The values that an argument must refuse, with their names."""
    right = RIGHT.get(name, set()) | (STR if name == "texts" and one_text else set())
    if type(None) in get_args(kind):
        right = right | {"None"}
    yield from ((key, value) for key, value in POOL.items() if key not in right)


def other_arguments(function: Callable[..., Any], tested: str) -> dict[str, Any]:
    """Values of the arguments that a function needs besides the tested one."""
    needed = {"texts": TEXTS, "a": torch.ones(2, 64), "b": torch.ones(2, 64)}
    known = arguments(function)
    return {name: value for name, value in needed.items() if name in known and name != tested}


def assert_refused(call: Callable[[], Any], about: str) -> None:
    """Check that a call, or the first step of the iterator it returns, is refused in one line."""
    try:
        result = call()
        if isinstance(result, Iterator):
            next(result)
    except LastwordError as error:
        line = str(error)
        assert "\n" not in line, about
        assert len(line) < 1000, about
        return
    pytest.fail(f"accepted: {about}")


def methods(kind: type) -> list[str]:
    """The names of the public methods that take arguments."""
    members = inspect.getmembers(kind, inspect.isfunction)
    return [name for name, each in members if name[0] != "_" and arguments(each)]


OF_INFO = ("vector_format", "space_fingerprint", "run_fingerprint", "resolve_prompt")
METHODS = [*methods(Embedder), *(f"info.{name}" for name in OF_INFO)]


def test_the_methods_are_found() -> None:
    assert {"encode", "encode_stream", "plan", "hidden_states", "similarity"} <= set(METHODS)
    assert {"precision", "batch_size", "texts"} <= arguments(Embedder.encode_query).keys()
    assert {"device", "cuda_graphs", "revision", "model"} <= arguments(Embedder).keys()


@pytest.mark.parametrize("method", METHODS)
def test_wrong_arguments_of_methods(method: str, embedder: Embedder) -> None:
    owner = embedder.info if method.startswith("info.") else embedder
    function = getattr(owner, method.removeprefix("info."))
    for name, kind in arguments(function).items():
        rest = other_arguments(function, name)
        for key, value in wrong_values(name, kind, one_text=method in ONE_TEXT):
            assert_refused(partial(function, **rest, **{name: value}), f"{method}({name}={key})")


def test_wrong_arguments_of_the_constructor(tiny_checkpoint: Path) -> None:
    rest = {"model": tiny_checkpoint, "device": "cpu"}
    for name, kind in arguments(Embedder).items():
        for key, value in wrong_values(name, kind):
            assert_refused(partial(Embedder, **(rest | {name: value})), f"Embedder({name}={key})")


@pytest.mark.parametrize("function", [similarity, similarity_pairwise])
def test_wrong_arguments_of_similarities(function: Callable[..., Any]) -> None:
    for name, kind in arguments(function).items():
        rest = other_arguments(function, name)
        for key, value in wrong_values(name, kind):
            assert_refused(partial(function, **rest, **{name: value}), f"{name}={key}")


# Attributes of an Embedder: what may be set is checked, and nothing else may be set.
SETTERS = ("max_length", "max_seq_length", "max_batch_tokens", "truncate_dim", "prompts")
READ_ONLY = ("name", "notices", "device", "dtype", "dim", "similarity_fn_name")


@pytest.mark.parametrize("name", [*SETTERS, "default_prompt_name"])
def test_wrong_values_of_attributes(name: str, tiny_checkpoint: Path) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    before = getattr(model, name)
    strings = STR if name == "default_prompt_name" else set()  # looked up when it is used
    for key in POOL.keys() - strings - {"None"}:
        assert_refused(partial(setattr, model, name, POOL[key]), f"{name} = {key}")
    assert getattr(model, name) == before


@pytest.mark.parametrize("name", READ_ONLY)
def test_attributes_that_cannot_be_set(name: str, embedder: Embedder) -> None:
    """Otherwise a new dtype would be in the fingerprint, but not in the vectors."""
    before = getattr(embedder, name)
    with pytest.raises(AttributeError, match=name):
        setattr(embedder, name, before)
    assert getattr(embedder, name) is before or getattr(embedder, name) == before


# What is accepted in place of Python's own integers and bools.


class Eight(IntEnum):
    VALUE = 8


INTEGERS = [np.int64(8), np.uint8(8), np.int32(8), Eight.VALUE, torch.tensor(8)]


@pytest.mark.parametrize("eight", INTEGERS, ids=lambda value: type(value).__name__)
def test_integers_of_other_types(eight: Any, embedder: Embedder, tiny_checkpoint: Path) -> None:
    settings = ("truncate_dim", "max_length", "max_batch_tokens")
    texts = ["the cat sat on the mat and then on the tree", "a tree"]
    models = []
    for value in (8, eight):
        opened = Embedder(tiny_checkpoint, device="cpu", **dict.fromkeys(settings, value))
        changed = Embedder(tiny_checkpoint, device="cpu")
        for name in settings:
            setattr(changed, name, value)
        models += [opened, changed]
    for model in models:
        assert [type(getattr(model, name)) for name in settings] == [int] * 3
        assert [getattr(model, name) for name in settings] == [8] * 3
        assert torch.equal(model.encode(texts), models[0].encode(texts))
        assert model.info.run_fingerprint() == models[0].info.run_fingerprint()
    cut = embedder.encode(texts, truncate_dim=8)
    assert torch.equal(embedder.encode(texts, truncate_dim=eight, batch_size=eight), cut)
    assert embedder.info.space_fingerprint(eight) == embedder.info.space_fingerprint(8)


@pytest.mark.parametrize(
    "layers",
    [np.array([0, -1]), (np.int64(0), np.uint8(2)), torch.tensor([0, 2]), iter([0, -1]), range(0, 3, 2)],
)  # fmt: skip
def test_layers_of_other_types(layers: Any, embedder: Embedder) -> None:
    expected = embedder.hidden_states(TEXTS, layers=[0, 2])
    assert torch.equal(embedder.hidden_states(TEXTS, layers=layers), expected)


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True), np.array(True)])
def test_a_bool_is_no_integer(value: Any, embedder: Embedder) -> None:
    for name in ("truncate_dim", "batch_size"):
        with refusal(ConfigError, where=name, what="not a whole number", got=short_repr(value)):
            embedder.encode(TEXTS, **{name: value})
    with refusal(ConfigError, where="layers", what="no such layer"):
        embedder.hidden_states(TEXTS, layers=[value])


@pytest.mark.parametrize("true", [True, 1, np.True_, np.int64(1)])
def test_switches(true: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    modules = folder / "modules.json"
    text = modules.read_text()
    modules.write_text(text[: text.rindex(",\n  {")] + "\n]\n")  # without Normalize
    model, false = Embedder(folder, device="cpu"), type(true)(0)
    unit = model.encode(TEXTS, normalize_embeddings=True)
    assert not torch.equal(model.encode(TEXTS), unit)
    assert torch.equal(model.encode(TEXTS, normalize_embeddings=true), unit)
    assert torch.equal(model.encode(TEXTS, normalize_embeddings=false), model.encode(TEXTS))
    known = model.info.run_fingerprint
    assert known(normalize_embeddings=true) == known(normalize_embeddings=True) != known()
    assert isinstance(model.encode(TEXTS, convert_to_numpy=true), np.ndarray)
    assert isinstance(model.encode(TEXTS, convert_to_numpy=false), torch.Tensor)


def test_an_array_without_numpy(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastword.encode_options.find_spec", lambda name: None)
    with refusal(MissingPackageError, where="convert_to_numpy", what="needs NumPy"):
        embedder.encode(TEXTS, convert_to_numpy=True)
    assert isinstance(embedder.encode(TEXTS), torch.Tensor)


@pytest.mark.parametrize("value", ["false", "true", "", 2, None, 0.0, [], np.array([True])])
def test_what_is_no_switch(value: Any, embedder: Embedder) -> None:
    for name in ("normalize_embeddings", "convert_to_numpy", "convert_to_tensor"):
        parts = {
            "what": "neither True nor False",
            "got": short_repr(value),
            "expected": "True or False",
        }
        with refusal(ConfigError, where=name, **parts):
            embedder.encode(TEXTS, **{name: value})


# Ranges, reports and prompts.

LOW, HIGH = [-0.5] * 64, [0.5] * 64
BOUNDS = torch.tensor([LOW, HIGH])
RANGES = {
    "list": [LOW, HIGH],
    "tuple": (tuple(LOW), tuple(HIGH)),
    "array": np.array([LOW, HIGH]),
    "array of fp32": np.array([LOW, HIGH], dtype=np.float32),
    "tensor of fp64": BOUNDS.double(),
    "list of arrays": [np.array(LOW), np.array(HIGH)],
    "list of tensors": [BOUNDS[0], BOUNDS[1]],
    "parameter": torch.nn.Parameter(BOUNDS.clone()),
    "array, backwards": np.array([HIGH, LOW])[::-1],
    "read only": np.broadcast_to(np.array([[-0.5], [0.5]]), (2, 64)),
}


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES.keys())
def test_ranges_of_other_types(ranges: Any, embedder: Embedder) -> None:
    codes = embedder.encode(TEXTS, precision="int8", ranges=ranges)
    assert torch.equal(codes, embedder.encode(TEXTS, precision="int8", ranges=BOUNDS))
    stream = embedder.encode_stream(TEXTS, precision="uint8", ranges=ranges)
    assert torch.equal(torch.stack(list(stream)).int(), codes.int() + 128)
    known = embedder.info.run_fingerprint
    assert known(precision="int8", ranges=ranges) == known(precision="int8", ranges=BOUNDS)


@pytest.mark.parametrize(
    ("ranges", "what", "got"),
    [
        ([LOW], "wrong shape", "[1, 64]"),
        ([LOW[1:], HIGH[1:]], "wrong shape", "[2, 63]"),
        ([], "wrong shape", "[0]"),
        ([LOW, HIGH[1:]], "not numbers", "list"),
        ([["a"] * 64, HIGH], "not numbers", "list"),
        ({"low": LOW, "high": HIGH}, "not numbers", "dict"),
        (np.array([LOW, HIGH], dtype=complex), "not numbers", "ndarray"),
        (BOUNDS.to_sparse(), "not numbers", "Tensor"),
        ([HIGH, LOW], "not every upper bound exceeds its lower bound", None),
        ([LOW, LOW], "not every upper bound exceeds its lower bound", None),
        ([LOW, [0.5] * 63 + [float("nan")]], "not finite", None),
        ([[-float("inf")] * 64, HIGH], "not finite", None),
        ([[-1e300] * 64, HIGH], "not finite", None),  # in fp32
        ([[-3e38] * 64, [3e38] * 64], "not finite", None),  # nor is their difference
    ],
)
def test_refused_ranges(ranges: Any, what: str, got: str | None, embedder: Embedder) -> None:
    for call in (embedder.encode, embedder.encode_stream, embedder.encode_groups):
        with refusal(ConfigError, where="ranges", what=what, got=got):
            call(TEXTS, precision="int8", ranges=ranges)


def test_a_report_is_a_report(embedder: Embedder) -> None:
    for value in ({}, 0, Report, object()):
        with refusal(ConfigError, where="report", what="not a Report", got=type(value).__name__):
            embedder.encode_stream(TEXTS, report=value)
    report = Report()
    embedder.encode(TEXTS, report=report)
    assert report.texts == 2


def test_prompts_of_other_types(tiny_checkpoint: Path) -> None:
    model = Embedder(tiny_checkpoint, device="cpu", prompts=MappingProxyType({"mine": "Mine: "}))
    assert model.prompts["mine"] == "Mine: "
    model.prompts = MappingProxyType({"other": "Other: "})
    model.prompts["more"] = "More: "
    assert model.prompts == {"other": "Other: ", "more": "More: "}
    for value, where, what in (
        ([("query", "Q: ")], "prompts", "not a dict of prompts"),
        ({"query": 5}, "prompts: 'query'", "not a string"),
        ({5: "Q: "}, "prompts: 5", "its name is not a string"),
    ):
        with refusal(ConfigError, where=where, what=what):
            model.prompts = value
        with refusal(ConfigError, where=where, what=what):
            Embedder(tiny_checkpoint, device="cpu", prompts=value)
    assert model.prompts == {"other": "Other: ", "more": "More: "}


# The helpers.


class Multiline:
    def __repr__(self) -> str:
        return "a\nb" + "c" * 1000


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "'x'"),
        (2.5, "2.5"),
        pytest.param(10**5000, "a huge int", id="huge"),
        ([1] * 1000, "[1, 1, 1, 1, 1, 1, ...]"),
        (Multiline(), f"a b{'c' * 25}...{'c' * 29}"),
    ],
)
def test_shown(value: object, text: str) -> None:
    assert short_repr(value) == text


@pytest.mark.parametrize(
    "value", ["x" * 10**6, Broken(), torch.ones(500, 500), [[["x" * 999]]] * 9]
)
def test_shown_is_short(value: object) -> None:
    assert len(short_repr(value)) <= 80
    assert "\n" not in short_repr(value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_numbers_are_fp32_whatever_the_default(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for values in ([[1 / 3] * 4], [np.full(4, 1 / 3)], torch.full((1, 4), 1 / 3).double()):
            found = as_numbers(values)
            assert found is not None
            assert found.dtype == torch.float32
        assert as_numbers([[1 / 3]]).item() == np.float32(1 / 3)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_inside_autocast(name: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 64), torch.randn(4, 64)
    for compare, other in ((similarity, b), (similarity_pairwise, a + 1)):
        expected = compare(a, other, name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(compare(a, other, name), expected)


def test_similarities_have_names() -> None:
    parts = {"got": "'cos'", "expected": "one of: cosine, dot, euclidean, manhattan"}
    with refusal(ConfigError, where="similarity", what="unknown", **parts):
        similarity([1.0], [1.0], "cos")
    for vectors in (np.ones(3, dtype=complex), torch.ones(2, 3).to_sparse(), {"a": 1}):
        with refusal(InputError, where="vectors", what="not numeric vectors of equal width"):
            similarity(vectors, torch.ones(3))
