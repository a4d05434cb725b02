"""One script, run with sentence-transformers and with lastword: the same keywords, the same results."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.messages import refusal

from lastword import ConfigError, Embedder
from lastword.arguments import short_repr
from lastword.bench.checkpoint import make_checkpoint

QUERIES = ["What is the capital of China?", "Explain gravity"]
DOCUMENTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other.",
    "",
    "The ferry leaves at noon, and again at four. " * 12,
]


def script(model: Any) -> dict[str, Any]:
    """Calls as a user of sentence-transformers writes them."""
    quiet = {"show_progress_bar": False, "batch_size": 2}
    queries = model.encode_query(QUERIES, convert_to_tensor=True, **quiet)
    documents = model.encode_document(DOCUMENTS, convert_to_tensor=True, **quiet)
    done = {
        "queries": queries,
        "documents": documents,
        "similarity": model.similarity(queries, documents),
        "pairwise": model.similarity_pairwise(queries, documents[:2]),
        "numpy": model.encode(DOCUMENTS, convert_to_numpy=True, **quiet),
        "one": model.encode(DOCUMENTS[0], prompt_name="query", convert_to_tensor=True),
        "prompt": model.encode(sorted(QUERIES), prompt="Say: ", convert_to_tensor=True),
        "unit": model.encode(
            QUERIES, truncate_dim=16, normalize_embeddings=True, convert_to_tensor=True
        ),
        "bits": model.encode(DOCUMENTS, precision="ubinary", convert_to_numpy=True),
        "signed": model.encode(DOCUMENTS, precision="binary", convert_to_numpy=True),
        "named": model.encode_query(inputs=QUERIES, convert_to_tensor=True),
        "named as before": model.encode(sentences=DOCUMENTS, convert_to_tensor=True),
        "dim": model.get_embedding_dimension(),
        "length": model.max_seq_length,
        "prompts": dict(model.prompts),
    }
    model.prompts["mine"] = "Mine: "
    done["mine"] = model.encode(QUERIES, prompt_name="mine", convert_to_tensor=True)
    model.max_seq_length = 10
    done["cut"] = model.encode(DOCUMENTS, convert_to_tensor=True)
    model.truncate_dim = 16
    done["narrow"] = model.encode(DOCUMENTS, convert_to_tensor=True)
    done["narrow dim"] = model.get_embedding_dimension()
    return done


OPTIONS = {
    "plain": {},
    "truncated": {"truncate_dim": 24},
    "prompts": {"prompts": {"query": "Q: ", "other": "O: "}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("normalized", [True, False])
def test_one_script_through_both(options: dict, normalized: bool, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = make_checkpoint(tmp_path / "model")
    if not normalized:
        modules = folder / "modules.json"
        text = modules.read_text()
        modules.write_text(text[: text.rindex(",\n  {")] + "\n]\n")
    theirs = script(SentenceTransformer(str(folder), device="cpu", **options))
    ours = script(Embedder(folder, device="cpu", **options))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        got = ours[name]
        assert type(got) is type(expected), name
        if isinstance(expected, (int, dict)):
            assert got == expected, name
            continue
        a, b = torch.as_tensor(got), torch.as_tensor(expected)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        if name == "narrow" or ("truncate_dim" in options and name in VECTORS):
            b = torch.nn.functional.normalize(b, dim=-1)  # the one documented difference
        assert float((a.float() - b.float()).abs().max()) <= 5e-5, name


VECTORS = {
    "queries",
    "documents",
    "numpy",
    "one",
    "prompt",
    "mine",
    "cut",
    "named",
    "named as before",
}


PROMPTS = {
    "both": {"query": "Q: ", "document": "D: "},
    "passage": {"query": "Q: ", "passage": "P: "},
    "none": {},
    "default": {"query": "Q: ", "mine": "M: "},
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("given", [None, {"query": "given: ", "other": "O: "}], ids=["", "given"])
def test_prompts_are_chosen_as_in_sentence_transformers(
    name: str, given: dict | None, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = make_checkpoint(tmp_path / "model")
    path = folder / "config_sentence_transformers.json"
    settings = {**json.loads(path.read_text()), "prompts": PROMPTS[name]}
    settings["default_prompt_name"] = "mine" if name == "default" else None
    path.write_text(json.dumps(settings))
    theirs = SentenceTransformer(str(folder), device="cpu", prompts=given)
    ours = Embedder(folder, device="cpu", prompts=given)
    for method in ("encode", "encode_query", "encode_document"):
        a, b = (
            getattr(model, method)(QUERIES, convert_to_tensor=True, show_progress_bar=False)
            for model in (ours, theirs)
        )
        assert float((a - b).abs().max()) <= 2e-5, method


def test_max_seq_length_is_checked(tiny_checkpoint: Path) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    with pytest.raises(ConfigError) as caught:
        model.max_seq_length = 0
    assert (caught.value.where, caught.value.what, caught.value.got) == (
        "max_length",
        "out of range",
        "0",
    )
    assert model.max_seq_length == model.max_length


NO_SUCH = "a keyword of sentence-transformers that lastword does not have"
ONE_TEXT = ("encode", "encode_query", "encode_document")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


def theirs(function: Callable[..., Any]) -> dict[str, Any]:
    """The keywords of one of its functions with their default values."""
    found = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in found if each.default is not each.empty}


def test_keywords_of_sentence_transformers_that_ask_for_nothing(
    model: Embedder, tiny_checkpoint: Path
) -> None:
    """Its own default values are accepted, whatever keywords a new version adds."""
    from sentence_transformers import SentenceTransformer

    for method in ONE_TEXT:
        given = theirs(getattr(SentenceTransformer, method))
        assert {"output_value", "pool", "chunk_size", "device", "batch_size"} <= given.keys()
        vectors = getattr(model, method)(QUERIES, **given)
        assert np.array_equal(vectors, getattr(model, method)(QUERIES, convert_to_numpy=True))
    harmless = {"chunk_size": 8, "processing_kwargs": {}, "task": None}
    assert torch.equal(model.encode(QUERIES, **harmless), model.encode(QUERIES))
    given = theirs(SentenceTransformer.__init__)
    assert {"modules", "backend", "config_kwargs", "similarity_fn_name"} <= given.keys()
    given |= {"device": "cpu", "trust_remote_code": True, "model_kwargs": {}}
    assert torch.equal(Embedder(tiny_checkpoint, **given).encode(QUERIES), model.encode(QUERIES))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_value", "token_embeddings"),
        ("output_value", None),
        ("device", "cpu"),
        ("device", ["cpu", "cpu"]),
        ("pool", {"input": None}),
        ("task", "query"),
        ("processing_kwargs", {"text": {"max_length": 8}}),
    ],
)
@pytest.mark.parametrize("method", [*ONE_TEXT, "encode_stream", "encode_groups"])
def test_refused_keywords_of_a_call(method: str, name: str, value: Any, model: Embedder) -> None:
    with refusal(ConfigError, where=name, what=NO_SUCH, got=short_repr(value)):
        getattr(model, method)(QUERIES, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_name_or_path", "model"),
        ("modules", [object]),
        ("default_prompt_name", "query"),
        ("cache_folder", "folder"),
        ("use_auth_token", True),
        ("model_kwargs", {"dtype": "bfloat16"}),
        ("processor_kwargs", {"model_max_length": 8}),
        ("tokenizer_kwargs", {"padding_side": "left"}),
        ("config_kwargs", {"rope_theta": 5.0}),
        ("backend", "onnx"),
        ("similarity_fn_name", "dot"),
    ],
)
def test_refused_keywords_of_the_constructor(name: str, value: Any, tiny_checkpoint: Path) -> None:
    with refusal(ConfigError, where=name, what=NO_SUCH, got=short_repr(value)):
        Embedder(tiny_checkpoint, device="cpu", **{name: value})
    with pytest.raises(TypeError, match=r"Embedder\(\) got an unexpected keyword argument 'dims'"):
        Embedder(tiny_checkpoint, dims=8)
