"""The public surface: prompts, order, streams, neighbours that change nothing, and sentence-transformers beside it."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.soak import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lastword import ConfigError, DeviceError, Embedder, InputError
from lastword.report import Report

TEXTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other.",
    "",
    "x",
    "The capital of China is Beijing.",
    "The capital of China is Beijing. And more of the same text follows it here.",
    "a much longer text " * 40,
]


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint: Path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_checkpoint), device="cpu")


def apart(a, b) -> float:
    return float((torch.as_tensor(a).float() - torch.as_tensor(b).float()).abs().max())


def test_encode_as_sentence_transformers(embedder: Embedder, theirs) -> None:
    assert apart(embedder.encode(TEXTS), theirs.encode(TEXTS)) <= 2e-5
    assert apart(embedder.encode_query(TEXTS), theirs.encode_query(TEXTS)) <= 2e-5
    assert apart(embedder.encode_document(TEXTS), theirs.encode_document(TEXTS)) <= 2e-5
    assert apart(embedder.encode(TEXTS, "query"), theirs.encode(TEXTS, prompt_name="query")) <= 2e-5
    assert (
        apart(embedder.encode(TEXTS, prompt="Say: "), theirs.encode(TEXTS, prompt="Say: ")) <= 2e-5
    )


def test_truncated_vectors_are_theirs_renormalised(embedder: Embedder, theirs) -> None:
    expected = torch.nn.functional.normalize(
        torch.tensor(theirs.encode(TEXTS, truncate_dim=24)), dim=1
    )
    assert apart(embedder.encode(TEXTS, truncate_dim=24), expected) <= 2e-5


def test_similarity_as_sentence_transformers(embedder: Embedder, theirs) -> None:
    a, b = embedder.encode_query(TEXTS[:2]), embedder.encode_document(TEXTS)
    ours, expected = (
        embedder.similarity(a, b),
        theirs.similarity(theirs.encode_query(TEXTS[:2]), theirs.encode_document(TEXTS)),
    )
    assert apart(ours, expected) <= 2e-5
    assert apart(embedder.similarity_pairwise(a, b[:2]), ours.diagonal()) <= 1e-6


def test_shapes_and_types(embedder: Embedder) -> None:
    one, many, none = embedder.encode("x"), embedder.encode(["x"]), embedder.encode([])
    assert (one.shape, many.shape, none.shape) == ((64,), (1, 64), (0, 64))
    assert isinstance(embedder.encode(TEXTS, convert_to_numpy=True), np.ndarray)
    assert isinstance(
        embedder.encode(TEXTS, convert_to_numpy=True, convert_to_tensor=True), torch.Tensor
    )
    assert embedder.get_embedding_dimension() == embedder.dim == 64
    assert embedder.encode(TEXTS, precision="ubinary").shape == (7, 8)
    assert embedder.encode([], precision="ubinary").shape == (0, 8)


def test_order_and_duplicates(embedder: Embedder) -> None:
    vectors = embedder.encode(TEXTS)
    assert torch.equal(vectors[0], vectors[4])
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert apart(embedder.encode(text), vector) <= 1e-5


def test_streams_are_the_same_in_constant_memory(embedder: Embedder) -> None:
    asked = 0

    def texts():
        nonlocal asked
        for i in range(10_000):
            asked = i
            yield TEXTS[i % 7] if i % 3 else f"text number {i}"

    report = Report()
    stream = embedder.encode_stream(texts(), report=report)
    first = next(stream)
    assert asked < 5_000, "the stream must not be read to its end before the first vector"
    rest = list(stream)
    assert apart(first, embedder.encode("text number 0")) <= 1e-5
    assert apart(rest[-1], embedder.encode("text number 9999")) <= 1e-5
    assert (len(rest), report.texts) == (9_999, 10_000)
    assert report.tokens_saved > 0
    assert report.seconds > 0


def test_plan_counts_what_encode_computes(embedder: Embedder) -> None:
    plan, report = embedder.plan(TEXTS, "query"), Report()
    list(embedder.encode_stream(TEXTS, "query", report=report))
    assert (plan.texts, plan.tokens_asked, plan.tokens_computed, plan.batches) == (
        report.texts, report.tokens_asked, report.tokens_computed, report.batches,
    )  # fmt: skip


def test_texts_over_max_length(tiny_checkpoint: Path, theirs) -> None:
    short = Embedder(tiny_checkpoint, device="cpu", max_length=8)
    report = Report()
    vectors = torch.stack(list(short.encode_stream(TEXTS, report=report)))
    theirs.max_seq_length, before = 8, theirs.max_seq_length
    expected = theirs.encode(TEXTS)
    theirs.max_seq_length = before
    assert apart(vectors, expected) <= 2e-5
    assert report.cut >= 2
    with pytest.raises(InputError, match="text 0: too long; got more than max_length 8 tokens"):
        short.encode(TEXTS, too_long="error")
    counts = Report()
    short.encode(TEXTS, report=counts)
    assert (counts.texts, counts.cut) == (report.texts, report.cut)
    assert counts.tokens_asked == report.tokens_asked


@pytest.mark.parametrize("method", ["encode_stream", "plan", "token_ids", "hidden_states"])
def test_one_str_is_not_several_texts(method: str, embedder: Embedder) -> None:
    with pytest.raises(InputError, match="texts: a single str"):
        list(getattr(embedder, method)("hello"))


WORDS = st.sampled_from("a bb the of tree forest query gravity 42 , . é".split())
LISTS = st.lists(st.lists(WORDS, max_size=30).map(" ".join), min_size=1, max_size=12)


@settings(
    max_examples=examples(500),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(LISTS, st.booleans(), st.sampled_from([1, 16, 50, 2048]))
def test_neighbours_change_nothing(
    embedder: Embedder, texts: list[str], prompted: bool, budget: int
) -> None:
    """Sharing on or off, any batch: a vector moves by at most 1e-5."""
    prompt = (
        "Instruct: Given a web search query, retrieve relevant passages\nQuery:" if prompted else ""
    )
    tokens = embedder._encoder.tokenizer.encode([prompt + text for text in texts], 1000).ids
    from helpers.transformers_reference import difference, our_states

    shared, _ = our_states(embedder._encoder.runner.model, tokens, budget=budget)
    alone, _ = our_states(embedder._encoder.runner.model, tokens, budget=4096, share=False)
    assert difference(shared, alone) <= 1e-5


def test_a_shared_prompt_is_computed_once_a_batch(embedder: Embedder) -> None:
    queries = [f"{i} {random.Random(i).random()}" for i in range(1000)]
    plain, prompted = embedder.plan(queries, prompt=""), embedder.plan(queries, "query")
    prompt = len(embedder._encoder.tokenizer.encode([embedder.prompts["query"]], 1000).ids[0]) - 1
    # Never fewer than the prompt once a batch; the queries' own tokens may merge with its last one.
    assert prompted.tokens_saved >= (1000 - prompted.batches) * (prompt - 1)
    assert plain.tokens_asked + 1000 * (prompt - 1) <= prompted.tokens_asked


def test_no_layers_are_not_all_of_them(embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match=r"layers: none is named; got \[\], expected 0 to 2"):
        embedder.hidden_states(TEXTS, layers=[])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "tpu"}, DeviceError, "got 'tpu', expected 'cpu', 'cuda'"),
        ({"device": "cuda:7"}, DeviceError, "not there; got 'cuda:7'"),
        ({"dtype": "float16"}, ConfigError, "got 'float16', expected 'float32' or 'bfloat16'"),
        ({"max_length": 1}, ConfigError, "max_length: out of range; got 1"),
        ({"max_length": 10**9}, ConfigError, "max_length: out of range"),
        ({"max_length": 16.0}, ConfigError, "max_length: out of range; got 16.0"),
        ({"max_length": True}, ConfigError, "max_length: out of range; got True"),
        ({"max_batch_tokens": 0}, ConfigError, "max_batch_tokens: out of range; got 0"),
        ({"max_batch_tokens": 64.0}, ConfigError, "max_batch_tokens: out of range; got 64.0"),
        ({"prompts": {"query": None}}, ConfigError, "prompts: 'query'; got None, expected a str"),
        ({"truncate_dim": 0}, ConfigError, "got 0, expected 1 to 64"),
        ({"truncate_dim": 65}, ConfigError, "got 65, expected 1 to 64"),
        ({"truncate_dim": True}, ConfigError, "got True"),
    ],
)
def test_refused_settings(options: dict, error: type, message: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(error, match=message):
        Embedder(tiny_checkpoint, **{"device": "cpu", **options})


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["a", 5], {}, InputError, "text 1: not a string; got int"),
        (["a", None], {}, InputError, "text 1: not a string; got NoneType"),
        (["a", "\udfff"], {}, InputError, "text 1: not valid Unicode"),
        (
            ["a"],
            {"prompt_name": "nope"},
            ConfigError,
            "got 'nope', expected one of: document, query",
        ),
        (["a", "abc\ud800"], {"prompt": "x" * 50}, InputError, r"text 1: .* at character 3"),
        (["a"], {"prompt": "abc\ud800"}, ConfigError, r"prompt: .* U\+D800 at character 3"),
        (["a"], {"prompt": 5}, ConfigError, "prompt: not a string; got 5"),
        (["a"], {"precision": "int3"}, ConfigError, "precision: unknown; got 'int3'"),
        (["a"], {"precision": "uint8"}, ConfigError, "uint8 needs ranges"),
        (["a"], {"truncate_dim": 12, "precision": "binary"}, ConfigError, "multiple of 8"),
        (["a"], {"too_long": "ignore"}, ConfigError, "too_long: unknown; got 'ignore'"),
    ],
)
def test_refused_calls(texts, options: dict, error: type, message: str, embedder: Embedder) -> None:
    with pytest.raises(error, match=message):
        embedder.encode(texts, **options)


def test_a_vector_that_is_not_finite_is_named(tiny_checkpoint: Path) -> None:
    broken = Embedder(tiny_checkpoint, device="cpu")
    x_id = broken._encoder.tokenizer.encode(["x"], 10).ids[0][0]
    model = broken._encoder.runner.model
    model.embedding = model.embedding.clone()
    model.embedding[x_id] = float("nan")
    with pytest.raises(InputError, match="text 3: its vector is not finite") as caught:
        broken.encode(["a", "b", "c", "x", "d"])
    assert caught.value.index == 3


def test_fingerprints(embedder: Embedder, tiny_checkpoint: Path) -> None:
    again = Embedder(tiny_checkpoint, device="cpu", max_length=100)
    assert again.space_fingerprint() == embedder.space_fingerprint()
    assert again.run_fingerprint() != embedder.run_fingerprint()
    assert embedder.space_fingerprint(32) != embedder.space_fingerprint()
    assert embedder.run_fingerprint("a") != embedder.run_fingerprint("b")
    assert len(embedder.space_fingerprint()) == 16
