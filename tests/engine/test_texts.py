"""What callers give as texts: every kind of column works, and what is no sequence of texts is refused by name."""

import io
from collections import Counter, UserList, UserString, deque
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.messages import refusal

from lastword import Embedder, InputError
from lastword.text.groups import list_texts

TEXTS = ["the cat sat", "a tree", "the cat sat", ""]
LISTS = ("encode", "encode_query", "encode_document", "hidden_states")
STREAMS = ("encode_stream", "encode_groups", "plan", "token_ids")


class Text(StrEnum):
    CAT = "the cat sat"


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def libraries() -> SimpleNamespace:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    return SimpleNamespace(datasets=datasets, pd=pd, pl=pl, pa=pa)


Make = Callable[[SimpleNamespace], Any]
ACCEPTED: dict[str, Make] = {
    "tuple": lambda _: tuple(TEXTS),
    "generator": lambda _: (text for text in TEXTS),
    "map": lambda _: map(str, TEXTS),
    "deque": lambda _: deque(TEXTS),
    "UserList": lambda _: UserList(TEXTS),
    "str of NumPy": lambda _: [np.str_(text) for text in TEXTS],
    "array": lambda _: np.array(TEXTS),
    "array of objects": lambda _: np.array(TEXTS, dtype=object),
    "array of StringDType": lambda _: np.array(TEXTS, dtype=np.dtypes.StringDType()),
    "values": lambda _: dict(enumerate(TEXTS)).values(),
    "Series": lambda of: of.pd.Series(TEXTS),
    "Series with names": lambda of: of.pd.Series(TEXTS, index=["keys", "readline", "columns", "x"]),
    "Series of objects": lambda of: of.pd.Series(TEXTS, dtype=object),
    "Series of Arrow": lambda of: of.pd.Series(TEXTS, dtype="string[pyarrow]"),
    "Series of categories": lambda of: of.pd.Series(TEXTS, dtype="category"),
    "Index": lambda of: of.pd.Index(TEXTS),
    "column of a frame": lambda of: of.pd.DataFrame({"text": TEXTS})["text"],
    "polars Series": lambda of: of.pl.Series(TEXTS),
    "column of a polars frame": lambda of: of.pl.DataFrame({"text": TEXTS})["text"],
    "Arrow array": lambda of: of.pa.array(TEXTS),
    "large Arrow array": lambda of: of.pa.array(TEXTS, type=of.pa.large_string()),
    "Arrow string view": lambda of: of.pa.array(TEXTS, type=of.pa.string_view()),
    "Arrow dictionary": lambda of: of.pa.array(TEXTS).dictionary_encode(),
    "Arrow chunks": lambda of: of.pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "column of an Arrow table": lambda of: of.pa.table({"text": TEXTS})["text"],
    "Arrow values": lambda of: list(of.pa.array(TEXTS)),
    "column of a dataset": lambda of: of.datasets.Dataset.from_dict({"text": TEXTS})["text"],
}


@pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_columns_of_texts(make: Make, embedder: Embedder, libraries: SimpleNamespace) -> None:
    assert torch.equal(embedder.encode(make(libraries)), embedder.encode(TEXTS))
    assert embedder.token_ids(make(libraries)) == embedder.token_ids(TEXTS)


def test_the_keys_of_a_dict_have_an_order() -> None:
    assert list_texts({"b": 1, "a": 2}.keys()) == ["b", "a"]


def test_an_empty_array_has_no_texts(embedder: Embedder) -> None:
    """NumPy makes it of float64, whatever was meant."""
    assert embedder.encode(np.array([])).shape == (0, 64)


@pytest.mark.parametrize("text", ["the cat sat", np.str_("the cat sat"), Text.CAT])
def test_one_text_is_one_vector(text: str, embedder: Embedder) -> None:
    assert torch.equal(embedder.encode(text), embedder.encode(["the cat sat"])[0])


LIST = "a list or an iterator of str"
REFUSED: dict[str, tuple[Make, str]] = {
    "dict": (lambda _: {"a": "b"}, "a mapping, which would give its keys"),
    "empty dict": (lambda _: {}, "a mapping, which would give its keys"),
    "Counter": (lambda _: Counter(TEXTS), "a mapping, which would give its keys"),
    "npz": (lambda _: _npz(), "a mapping, which would give its keys"),
    "ModuleDict": (lambda _: torch.nn.ModuleDict(), "a mapping, which would give its keys"),
    "set": (lambda _: set(TEXTS), "a set, which has no order"),
    "frozenset": (lambda _: frozenset(TEXTS), "a set, which has no order"),
    "frame": (lambda of: of.pd.DataFrame({"text": TEXTS}), "a table, which is not a column"),
    "empty frame": (lambda of: of.pd.DataFrame(), "a table, which is not a column"),
    "polars frame": (lambda of: of.pl.DataFrame({"text": TEXTS}), "a table, which is not a column"),
    "lazy frame": (lambda of: of.pl.LazyFrame({"text": TEXTS}), "a table, which is not a column"),
    "Arrow table": (lambda of: of.pa.table({"text": TEXTS}), "a table, which is not a column"),
    "Arrow batch": (lambda of: of.pa.record_batch({"t": TEXTS}), "a table, which is not a column"),
    "dataset": (
        lambda of: of.datasets.Dataset.from_dict({"text": TEXTS}),
        "a table, which is not a column",
    ),
    "streamed dataset": (
        lambda of: of.datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
        "a table, which is not a column",
    ),
    "bytes": (lambda _: b"the cat", "bytes, which are not text"),
    "no bytes": (lambda _: b"", "bytes, which are not text"),
    "bytearray": (lambda _: bytearray(b"the cat"), "bytes, which are not text"),
    "file": (lambda _: io.StringIO("the cat\nsat\n"), "a file, whose lines would keep"),
    "None": (lambda _: None, "cannot be iterated over"),
    "int": (lambda _: 5, "cannot be iterated over"),
    "array of no dimension": (lambda _: np.array("the cat"), "cannot be iterated over"),
    "tensor of no dimension": (lambda _: torch.tensor(1.0), "cannot be iterated over"),
    "Path": (lambda _: Path("the cat"), "cannot be iterated over"),
    "Arrow value": (lambda of: of.pa.scalar("the cat"), "cannot be iterated over"),
    "function": (lambda _: print, "cannot be iterated over"),
}


def _npz() -> Any:
    file = io.BytesIO()
    np.savez(file, a=np.array(["x"]))
    return np.load(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(("make", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_no_sequence_of_texts(
    make: Make, what: str, embedder: Embedder, libraries: SimpleNamespace
) -> None:
    for method in (*LISTS, *STREAMS):
        texts = make(libraries)
        with pytest.raises(InputError) as caught:
            getattr(embedder, method)(texts)  # at the call, not at the first vector
        error = caught.value
        assert error.what.startswith(what), method
        assert (error.where, error.got, error.expected) == ("texts", type(texts).__name__, LIST)
        assert error.remedy


MISSING = "A value is missing: leave it out, or put '' in its place."
FLAT = "Pass one flat list of str, with one str per text."
DECODE = "Decode it, as in data.decode()."
CONVERT = "Convert it with str()."
NO_TEXT: dict[str, tuple[Make, str, str]] = {
    "None": (lambda _: None, "NoneType", MISSING),
    "nan": (lambda _: float("nan"), "float", MISSING),
    "nan of NumPy": (lambda _: np.float64("nan"), "float64", MISSING),
    "NA": (lambda of: of.pd.NA, "NAType", MISSING),
    "NaT": (lambda of: of.pd.NaT, "NaTType", MISSING),
    "null of Arrow": (lambda of: of.pa.scalar(None, of.pa.string()), "NoneType", MISSING),
    "number of Arrow": (lambda of: of.pa.scalar(5), "int", CONVERT),
    "float": (lambda _: 1.5, "float", CONVERT),
    "bool": (lambda _: True, "bool", CONVERT),
    "integer of NumPy": (lambda _: np.int64(1), "int64", CONVERT),
    "bytes": (lambda _: b"the cat", "bytes", DECODE),
    "bytes of NumPy": (lambda _: np.bytes_(b"the cat"), "bytes_", DECODE),
    "list": (lambda _: ["the cat", "sat"], "list", FLAT),
    "pair": (lambda _: ("the cat", "sat"), "tuple", FLAT),
    "dict": (lambda _: {"text": "the cat"}, "dict", FLAT),
    "message": (lambda _: {"role": "user", "content": "the cat"}, "dict", FLAT),
    "array": (lambda _: np.array(["the cat"]), "ndarray", FLAT),
    "tensor": (lambda _: torch.ones(2), "Tensor", FLAT),
    "UserString": (lambda _: UserString("the cat"), "UserString", CONVERT),
    "Path": (lambda _: Path("the cat"), type(Path()).__name__, CONVERT),
}


@pytest.mark.parametrize(("make", "got", "remedy"), NO_TEXT.values(), ids=NO_TEXT.keys())
def test_a_list_with_something_else(
    make: Make, got: str, remedy: str, embedder: Embedder, libraries: SimpleNamespace
) -> None:
    texts = ["a", make(libraries)]
    parts = {"where": "text 1", "got": got, "expected": "str", "remedy": remedy, "index": 1}
    for method in (*LISTS, *STREAMS):
        with refusal(InputError, what="not a string", **parts):
            list(getattr(embedder, method)(texts))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_columns_with_missing_values(missing: object, libraries: SimpleNamespace) -> None:
    of, values = libraries, ["a", missing]
    columns = [of.pd.Series(values), of.pd.Series(values, dtype="string"), np.array(values, object)]
    if missing is None:
        columns += [of.pl.Series(values), of.pa.array(values), of.pa.chunked_array([values])]
    for column in columns:
        with refusal(InputError, where="text 1", what="not a string", remedy=MISSING, index=1):
            list_texts(column)


def test_encode_finds_a_wrong_text_before_it_computes(embedder: Embedder) -> None:
    computed: list[int] = []
    start = embedder.loop.runner.start
    embedder.loop.runner.start = lambda *args: computed.append(1) or start(*args)
    try:
        with refusal(InputError, index=5000):
            embedder.encode(["a"] * 5000 + [None])
        assert computed == []
        assert (embedder.encode(["a"]).shape, computed) == ((1, 64), [1])
    finally:
        del embedder.loop.runner.start


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("name", ["inputs", "sentences", "texts"])
def test_the_texts_by_name(name: str, method: str, embedder: Embedder) -> None:
    call = getattr(embedder, method)
    assert torch.equal(call(**{name: TEXTS}), call(TEXTS))
    assert torch.equal(call(**{name: "the cat sat"}), call("the cat sat"))
    assert torch.equal(call(prompt="Say: ", **{name: TEXTS}), call(TEXTS, prompt="Say: "))
    other = "sentences" if name == "inputs" else "inputs"
    for args, names in (((TEXTS,), (name,)), ((), (name, other))):
        twice = "twice" if name != "texts" or other in names else "multiple values"
        with pytest.raises(TypeError, match=twice):
            call(*args, **dict.fromkeys(names, TEXTS))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'texts'"):
        call()
