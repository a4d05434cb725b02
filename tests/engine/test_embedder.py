"""The public API: prompts, order, streams, independence of other texts, comparison with sentence-transformers."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.project import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lastword import ConfigError, DeviceError, Embedder, InputError
from lastword.model_info import ModelInfo
from lastword.report import Report

SURROGATE = "not valid Unicode; the lone surrogate U+{} at character {}"
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


def test_encode_matches_sentence_transformers(embedder: Embedder, theirs) -> None:
    assert apart(embedder.encode(TEXTS), theirs.encode(TEXTS)) <= 2e-5
    assert apart(embedder.encode_query(TEXTS), theirs.encode_query(TEXTS)) <= 2e-5
    assert apart(embedder.encode_document(TEXTS), theirs.encode_document(TEXTS)) <= 2e-5
    assert apart(embedder.encode(TEXTS, "query"), theirs.encode(TEXTS, prompt_name="query")) <= 2e-5
    assert (
        apart(embedder.encode(TEXTS, prompt="Say: "), theirs.encode(TEXTS, prompt="Say: ")) <= 2e-5
    )


def test_truncated_vectors_are_renormalised(embedder: Embedder, theirs) -> None:
    expected = torch.nn.functional.normalize(
        torch.tensor(theirs.encode(TEXTS, truncate_dim=24)), dim=1
    )
    assert apart(embedder.encode(TEXTS, truncate_dim=24), expected) <= 2e-5


def test_similarity_matches_sentence_transformers(embedder: Embedder, theirs) -> None:
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
    assert (plan.texts, plan.tokens_requested, plan.tokens_computed, plan.batches) == (
        report.texts, report.tokens_requested, report.tokens_computed, report.batches,
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
    with pytest.raises(InputError) as caught:
        short.encode(TEXTS, too_long="error")
    error = caught.value
    assert (error.where, error.what, error.index) == ("text 0", "too long", 0)
    assert error.got == "more than 8 tokens"
    counts = Report()
    short.encode(TEXTS, report=counts)
    assert (counts.texts, counts.cut) == (report.texts, report.cut)
    assert counts.tokens_requested == report.tokens_requested


@pytest.mark.parametrize(
    "method", ["encode_stream", "encode_groups", "plan", "token_ids", "hidden_states"]
)
def test_one_str_is_not_several_texts(method: str, embedder: Embedder) -> None:
    with pytest.raises(InputError) as caught:
        getattr(embedder, method)("hello")
    assert (caught.value.where, caught.value.got) == ("texts", "str")
    assert caught.value.what.startswith("a single str")


WORDS = st.sampled_from("a bb the of tree forest query gravity 42 , . é".split())
LISTS = st.lists(st.lists(WORDS, max_size=30).map(" ".join), min_size=1, max_size=12)


@settings(
    max_examples=examples(500),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(LISTS, st.booleans(), st.sampled_from([1, 16, 50, 2048]))
def test_other_texts_change_nothing(
    embedder: Embedder, texts: list[str], prompted: bool, budget: int
) -> None:
    """With or without sharing, and in any batch, a vector differs by at most 1e-5."""
    prompt = (
        "Instruct: Given a web search query, retrieve relevant passages\nQuery:" if prompted else ""
    )
    tokens = embedder.info.tokenizer.encode([prompt + text for text in texts], 1000).ids
    from helpers.transformers_reference import difference, our_states

    shared, _ = our_states(embedder.loop.runner.model, tokens, budget=budget)
    alone, _ = our_states(embedder.loop.runner.model, tokens, budget=4096, share=False)
    assert difference(shared, alone) <= 1e-5


def test_a_shared_prompt_is_computed_once_per_batch(embedder: Embedder) -> None:
    queries = [f"{i} {random.Random(i).random()}" for i in range(1000)]
    plain, prompted = embedder.plan(queries, prompt=""), embedder.plan(queries, "query")
    prompt = len(embedder.info.tokenizer.encode([embedder.prompts["query"]], 1000).ids[0]) - 1
    # At least the prompt once per batch; the first characters of a query may merge with its last token.
    assert prompted.tokens_saved >= (1000 - prompted.batches) * (prompt - 1)
    assert plain.tokens_requested + 1000 * (prompt - 1) <= prompted.tokens_requested


def test_an_empty_list_of_layers_is_refused(embedder: Embedder) -> None:
    with pytest.raises(ConfigError) as caught:
        embedder.hidden_states(TEXTS, layers=[])
    error = caught.value
    assert (error.where, error.what, error.got) == ("layers", "none is named", "[]")
    assert error.expected == "0 to 2, or None for all"


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        (
            {"device": "tpu"},
            DeviceError,
            ("unknown", "'tpu'", "'cpu', 'cuda', 'cuda:N', 'cuda:0,1' or 'cuda:all'"),
        ),
        ({"device": "cuda:7"}, DeviceError, ("not there", "'cuda:7'")),
        (
            {"dtype": "float16"},
            ConfigError,
            ("not a compute dtype", "'float16'", "'float32' or 'bfloat16'"),
        ),
        ({"max_length": 1}, ConfigError, ("out of range", "1", "2 to 4096 tokens")),
        ({"max_length": 10**9}, ConfigError, ("out of range", "1000000000", "2 to 4096 tokens")),
        ({"max_length": 16.0}, ConfigError, ("not a whole number", "16.0", "2 to 4096 tokens")),
        ({"max_length": True}, ConfigError, ("not a whole number", "True", "2 to 4096 tokens")),
        ({"max_batch_tokens": 0}, ConfigError, ("out of range", "0", "1 or more")),
        ({"max_batch_tokens": 64.0}, ConfigError, ("not a whole number", "64.0", "1 or more")),
        ({"prompts": {"query": None}}, ConfigError, ("not a string", "None", "str")),
        ({"truncate_dim": 0}, ConfigError, ("out of range", "0", "1 to 64")),
        ({"truncate_dim": 65}, ConfigError, ("out of range", "65", "1 to 64")),
        ({"truncate_dim": True}, ConfigError, ("not a whole number", "True", "1 to 64")),
    ],
)
def test_refused_settings(
    options: dict, error: type, parts: tuple[str, ...], tiny_checkpoint: Path
) -> None:
    with pytest.raises(error) as caught:
        Embedder(tiny_checkpoint, **{"device": "cpu", **options})
    found = caught.value
    assert (found.where.partition(":")[0], *parts) == (
        *options, *(found.what, found.got, found.expected)[: len(parts)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "options", "error", "where", "what", "got"),
    [
        (["a", 5], {}, InputError, "text 1", "not a string", "int"),
        (["a", None], {}, InputError, "text 1", "not a string", "NoneType"),
        (["a", "\udfff"], {}, InputError, "text 1", *SURROGATE.format("DFFF", 0).split("; ")),
        (["a"], {"prompt_name": "nope"}, ConfigError, "prompt", "unknown name", "'nope'"),
        (
            ["a", "abc\ud800"],
            {"prompt": "x" * 50},
            InputError,
            "text 1",
            *SURROGATE.format("D800", 3).split("; "),
        ),
        (
            ["a"],
            {"prompt": "abc\ud800"},
            ConfigError,
            "prompt",
            *SURROGATE.format("D800", 3).split("; "),
        ),
        (["a"], {"prompt": 5}, ConfigError, "prompt", "not a string", "5"),
        (["a"], {"precision": "int3"}, ConfigError, "precision", "unknown", "'int3'"),
        (["a"], {"precision": "uint8"}, ConfigError, "precision", "uint8 needs ranges", "none"),
        (
            ["a"],
            {"truncate_dim": 12, "precision": "binary"},
            ConfigError,
            "precision",
            "binary packs 8 dimensions per byte",
            "dim 12",
        ),
        (["a"], {"too_long": "ignore"}, ConfigError, "too_long", "unknown", "'ignore'"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_stream", "encode_groups"])
def test_refused_calls(
    method: str, texts, options: dict, error: type, where: str, what: str, got: str,
    embedder: Embedder,
) -> None:  # fmt: skip
    with pytest.raises(error) as caught:
        given = getattr(embedder, method)(texts, **options)
        assert error is InputError, "settings are checked at the call, not at the first vector"
        next(given)
    assert (caught.value.where, caught.value.what, caught.value.got) == (where, what, got)
    if "prompt_name" in options:
        assert caught.value.expected == "one of: document, query"


@pytest.mark.parametrize(
    "method", ["encode", "encode_query", "encode_document", "encode_stream", "encode_groups"]
)
def test_an_unknown_keyword_is_refused_at_the_call(method: str, embedder: Embedder) -> None:
    with pytest.raises(TypeError, match=r"encode\w*\(\) got an unexpected keyword argument 'dims'"):
        getattr(embedder, method)(["a"], dims=8)


def test_groups_have_the_vectors_of_the_stream(embedder: Embedder) -> None:
    groups = list(embedder.encode_groups(TEXTS * 700, "query", truncate_dim=8, precision="int8"))
    assert [len(group) for group in groups] == [4096, 804]
    assert (groups[0].dtype, groups[0].shape[1]) == (torch.int8, 8)
    stream = list(embedder.encode_stream(TEXTS * 700, "query", truncate_dim=8, precision="int8"))
    assert torch.equal(torch.cat(groups), torch.stack(stream))


def test_a_vector_that_is_not_finite_or_zero_is_named(tiny_checkpoint: Path) -> None:
    broken = Embedder(tiny_checkpoint, device="cpu")
    x_id, end_id = broken.info.tokenizer.encode(["x"], 10).ids[0]
    model = broken.loop.runner.model
    table, what = model.embedding, "its vector is zero or not finite"
    # The squares of large values overflow, and the norm then gives zeros.
    for row, value, index in ((x_id, float("nan"), 3), (end_id, 1e38, 0)):
        model.embedding = table.clone()
        model.embedding[row] = value
        for precision in ("float32", "int8"):
            with pytest.raises(InputError) as caught:
                broken.encode(["a", "b", "c", "x", "d"], precision=precision)
            error = caught.value
            assert (error.where, error.what, error.index) == (f"text {index}", what, index)


def test_fingerprints(embedder: Embedder, tiny_checkpoint: Path) -> None:
    again = Embedder(tiny_checkpoint, device="cpu", max_length=100)
    info = embedder.info
    assert again.info.space_fingerprint() == info.space_fingerprint()
    assert again.info.run_fingerprint() != info.run_fingerprint()
    assert info.space_fingerprint(32) != info.space_fingerprint()
    assert info.run_fingerprint("a") != info.run_fingerprint("b")
    assert len(info.space_fingerprint()) == 16


def test_the_space_depends_on_the_computation_but_not_on_limits(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """`max_position_embeddings` is only a limit, whereas the RoPE theta changes the vectors."""
    spaces = {}
    for name, change in {
        "same": {},
        "limit": {"max_position_embeddings": 8192},
        "theta": {"rope_theta": 2e6},
    }.items():
        folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / name))
        values = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(values))
        spaces[name] = ModelInfo(folder, device="cpu").space_fingerprint()
    assert spaces["same"] == spaces["limit"] != spaces["theta"]


class Own(Embedder):
    pass


@pytest.mark.parametrize(
    ("kind", "settings", "rest"),
    [
        (Embedder, {}, "device='cpu', dtype='float32', dim=64, max_length=4096"),
        (
            Own,
            {"truncate_dim": 16, "max_length": 10, "dtype": "bfloat16"},
            "device='cpu', dtype='bfloat16', dim=16, max_length=10",
        ),
        (
            Embedder,
            {"quantize": "int8", "max_length": 7},
            "device='cpu', dtype='float32', dim=64, max_length=7, quantize='int8'",
        ),
    ],
)
def test_repr_says_on_one_line_what_the_model_is(
    kind: type[Embedder], settings: dict, rest: str, tiny_checkpoint: Path
) -> None:
    model = kind(tiny_checkpoint, device="cpu", **settings)
    assert repr(model) == f"{kind.__name__}({str(tiny_checkpoint)!r}, {rest})"


def test_repr_names_the_built_in_model_and_follows_its_settings() -> None:
    model = Embedder(device="cpu")
    assert repr(model).startswith("Embedder('built-in', device='cpu', dtype='float32', dim=256, ")
    model.truncate_dim, model.max_length = 8, 9
    assert repr(model).endswith(" dim=8, max_length=9)")
    model.close()
    assert repr(model).endswith(" dim=8, max_length=9, closed)")


def test_warming_up_changes_no_vector(tiny_checkpoint: Path) -> None:
    warm, cold = Embedder(tiny_checkpoint, device="cpu"), Embedder(tiny_checkpoint, device="cpu")
    warm.warm_up()
    assert torch.equal(warm.encode_query(["a text"]), cold.encode_query(["a text"]))
