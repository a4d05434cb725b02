"""The routes of text-embeddings-inference, Cohere and Ollama: their bodies, answers and errors; their own clients."""

import base64

import numpy as np
import pytest

TEXTS = ["how do plants make sugar?", "", "zwölf Boxkämpfer 🥊"]
LONG = "word " * 600


@pytest.fixture(scope="module")
def wanted(model):
    return model.encode(TEXTS).numpy()


def close(found, expected):
    np.testing.assert_allclose(np.array(found), expected, atol=1e-5)


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_embed(server, model, wanted, path):
    close(server.post(path, {"inputs": TEXTS}).json(), wanted)
    close(server.post(path, {"inputs": TEXTS[0]}).json(), wanted[:1])  # two-dimensional
    close(server.post(path, {"inputs": TEXTS, "normalize": False}).json(), wanted)  # the model does
    body = {"inputs": TEXTS, "dimensions": 32, "prompt_name": "query", "normalize": True}
    expected = model.encode(TEXTS, truncate_dim=32, prompt_name="query").numpy()
    close(server.post(path, body).json(), expected)


@pytest.mark.parametrize(("side", "kept"), [("Right", "left"), ("left", "right")])
def test_embed_cuts_the_end_that_is_asked_for(server, model, side, kept):
    text = "start " + LONG + " end"
    body = {"inputs": text, "truncate": True, "truncation_direction": side}
    response = server.post("/embed", body)
    assert response.headers["x-lastword-truncated-inputs"] == "0"
    short = text[: len(text) // 2] if kept == "left" else text[len(text) // 2 :]
    half = server.post("/embed", {**body, "inputs": short}).json()
    close(response.json(), half)


@pytest.mark.parametrize("path", ["/similarity", "/"])
def test_similarity(server, model, path):
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}, "parameters": {}}
    found = server.post(path, body).json()
    vectors = model.encode(TEXTS)
    close(found, model.similarity(vectors[:1], vectors)[0].numpy())


def test_tokenize_and_decode(server, model):
    text = "how do plants grow"
    (tokens,) = server.post("/tokenize", {"inputs": text}).json()
    assert [each["id"] for each in tokens] == model.token_ids([text])[0]
    inner = [each for each in tokens if not each["special"]]
    assert all(text[each["start"] : each["stop"]] == each["text"] for each in inner)
    assert all(set(each) == {"id", "text", "special", "start", "stop"} for each in tokens)
    bare = {"inputs": [text, ""], "add_special_tokens": False}
    first, second = server.post("/tokenize", bare).json()
    assert first == inner
    assert second == []
    ids = [each["id"] for each in inner]
    assert server.post("/decode", {"ids": ids}).json() == [text]
    assert server.post("/decode", {"ids": [ids, ids[:1]]}).json()[0] == text
    assert server.post("/decode", {"ids": [10**9]}).status_code == 422


REFUSED = [
    ("/embed", {}, 422, "Validation"),
    ("/embed", {"inputs": []}, 400, "Empty"),
    ("/embed", {"inputs": LONG}, 413, "Validation"),
    ("/embed", {"inputs": "a", "truncate": "yes"}, 422, "Validation"),
    ("/embed", {"inputs": [[1, 2]]}, 422, "Validation"),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty"),
    ("/", {"query": "a", "texts": ["b"]}, 422, "Validation"),
    ("/", ["a"], 422, "Validation"),
    ("/embed_all", {"inputs": "a"}, 422, "Validation"),
    ("/embed_sparse", {"inputs": "a"}, 422, "Validation"),
    ("/predict", {"inputs": "a"}, 422, "Validation"),
    ("/rerank", {"query": "a", "texts": ["b"]}, 422, "Validation"),
    ("/tokenize", {"inputs": 3}, 422, "Validation"),
    ("/tokenize", {"inputs": "a", "prompt_name": "nothing"}, 422, "Validation"),
]


@pytest.mark.parametrize(("path", "body", "status", "kind"), REFUSED)
def test_refused(server, path, body, status, kind):
    response = server.post(path, body)
    assert response.status_code == status, response.text
    assert response.json()["error_type"] == kind
    assert isinstance(response.json()["error"], str)


def test_cohere(server, model, wanted):
    body = {"texts": TEXTS, "embedding_types": ["float", "int8", "ubinary", "base64"]}
    answer = server.post("/v2/embed", body).json()
    assert answer["id"]
    assert answer["texts"] == TEXTS
    tokens = sum(map(len, model.token_ids(TEXTS)))
    assert answer["meta"]["billed_units"] == answer["meta"]["tokens"] == {"input_tokens": tokens}
    numbers = answer["embeddings"]
    close(numbers["float"], wanted)
    close([np.frombuffer(base64.b64decode(each), "<f4") for each in numbers["base64"]], wanted)
    for kind, off in (("int8", 1), ("ubinary", 0)):
        expected = model.encode(TEXTS, precision=kind).numpy().astype(int)
        assert np.abs(np.array(numbers[kind]) - expected).max() <= off
    query = {"texts": TEXTS, "input_type": "search_query", "output_dimension": 64}
    found = server.post("/v2/embed", query).json()["embeddings"]["float"]
    close(found, model.encode(TEXTS, prompt_name="query", truncate_dim=64).numpy())


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"texts": ["a"] * 97}, 400, "texts: too many; got 97, expected at most 96."),
        ({"texts": []}, 400, "texts: empty"),
        ({"texts": ["a"], "embedding_types": []}, 400, "embedding_types: empty"),
        ({"texts": ["a"], "embedding_types": ["half"]}, 400, "embedding_types"),
        ({"texts": ["a"], "images": []}, 400, "images: unknown field."),
        ({"texts": ["a"], "input_type": "classification"}, 400, "unknown name"),
        ({"texts": ["a"], "max_tokens": 1, "truncate": "END"}, 400, "max_tokens: too small"),
        ({"texts": [LONG], "truncate": "NONE"}, 413, "texts 0: too long"),
        ({"texts": ["a"], "model": "embed-v4.0"}, 404, "is not served here"),
    ],
)
def test_cohere_refuses(server, body, status, message):
    response = server.post("/v2/embed", body)
    assert response.status_code == status, response.text
    assert message in response.json()["message"]


def test_cohere_cuts_and_warns(server):
    cut = server.post("/v2/embed", {"texts": ["a", LONG], "truncate": "START"}).json()
    assert cut["meta"]["warnings"] == ["truncated texts: 1"]
    few = server.post(
        "/v2/embed", {"texts": ["a b c d"], "truncate": "END", "max_tokens": 4}
    ).json()
    assert few["meta"]["tokens"] == {"input_tokens": 4}


def test_ollama(server, model, wanted):
    (listed,) = server.get("/api/tags").json()["models"]
    body = {"model": f"{listed['name']}:latest", "input": TEXTS, "keep_alive": "5m", "options": {}}
    answer = server.post("/api/embed", body).json()
    close(answer["embeddings"], wanted)
    assert answer["prompt_eval_count"] == sum(map(len, model.token_ids(TEXTS)))
    assert answer["total_duration"] > 0
    close(server.post("/api/embed", {"input": TEXTS[0]}).json()["embeddings"], wanted[:1])
    assert server.get("/api/version").json()["version"]
    missing = server.post("/api/embed", {"model": "llama", "input": "a"})
    assert missing.status_code == 404
    assert "is not served here" in missing.json()["error"]


def test_metrics(server):
    def value(name):
        lines = server.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    names = ("te_embed_count ", "te_embed_success ", "te_batch_next_size_count", "te_batch_next_size_sum",
             "te_batch_next_tokens_sum", 'te_request_success{path="/embed"',
             'te_request_count{path="/embed"', "te_request_duration_count",
             "te_request_queue_duration_count", "te_request_inference_duration_count",
             "te_request_tokenization_duration_count", "te_request_input_length_count",
             "lastword_tokens_requested ", "lastword_tokens_computed ", "lastword_tokens_shared ",
             "lastword_texts_truncated ")  # fmt: skip
    before = [value(name) for name in names]
    server.post("/embed", {"inputs": [LONG, LONG, "other"], "truncate": True})
    after = [value(name) for name in names]
    assert all(b > a for a, b in zip(before, after, strict=True)), (before, after)
    for name in ("te_queue_size ", "lastword_queue_age_seconds ", "lastword_requests_in_hand "):
        assert value(name) == 0
    failed = 'te_request_failure{err="validation",path="/embed",status="422"}'
    before = [value(failed), value("te_batch_next_size_sum"), value("te_batch_next_tokens_sum")]
    assert server.post("/embed", {"inputs": 1}).status_code == 422
    asked = ["one text", "one text", "another one"]
    answer = server.post("/embed", {"inputs": asked})
    after = [value(failed), value("te_batch_next_size_sum"), value("te_batch_next_tokens_sum")]
    # Equal texts are computed once, so the batch has two texts, and fewer tokens than were requested.
    assert [b - a for a, b in zip(before[:2], after[:2], strict=True)] == [1, 2]
    assert 0 < after[2] - before[2] < float(answer.headers["x-lastword-tokens"])
    server.get("/invented/by/a/client")
    assert "invented" not in server.get("/metrics").text


def test_huggingface_client(server, model, wanted):
    from huggingface_hub import InferenceClient

    client = InferenceClient(server.url)
    close(client.feature_extraction(TEXTS[0])[0], wanted[0])
    found = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS)
    vectors = model.encode(TEXTS)
    close(found, model.similarity(vectors[:1], vectors)[0].numpy())
