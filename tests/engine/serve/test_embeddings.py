"""`POST /v1/embeddings`: the vectors of `encode` in every form, what a body may hold, and what is refused."""

import base64
import threading

import numpy as np
import pytest
import torch
from helpers.serving.servers import running

from lastword import Embedder
from lastword.serve.settings import Limits, Settings

TEXTS = ["how do plants make sugar?", "", "zwölf Boxkämpfer 🥊", "a " * 90, "how do plants"]
ROUTE = "/v1/embeddings"


def vectors(response):
    assert response.status_code == 200, response.text
    return np.array([each["embedding"] for each in response.json()["data"]])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {}),
        ({"encoding_format": "float"}, {}),
        ({"encoding_format": None, "user": "me", "dimensions": None}, {}),
        ({"dimensions": 64}, {"truncate_dim": 64}),
        ({"output_dimension": 64}, {"truncate_dim": 64}),
        ({"prompt": "P: "}, {"prompt": "P: "}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"input_type": "query"}, {"prompt_name": "query"}),
        ({"task": "retrieval.query"}, {"prompt_name": "query"}),
        ({"input_type": "search_document"}, {"prompt_name": "document"}),
        ({"normalized": True, "late_chunking": False}, {}),
    ],
)
def test_the_vectors_are_those_of_encode(server, model, body, expected):
    found = vectors(server.post(ROUTE, {"input": TEXTS, **body}))
    np.testing.assert_allclose(found, model.encode(TEXTS, **expected).numpy(), atol=1e-5)


def test_one_text_is_one_vector(server, model):
    response = server.post(ROUTE, {"input": TEXTS[0]})
    np.testing.assert_allclose(vectors(response)[0], model.encode(TEXTS[0]).numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "binary", "ubinary"])
@pytest.mark.parametrize("name", ["encoding_format", "embedding_type", "output_dtype"])
def test_other_numbers(server, model, dtype, name):
    found = vectors(server.post(ROUTE, {"input": TEXTS, name: dtype}))
    wanted = model.encode(TEXTS, precision=dtype).numpy().astype(int)
    assert np.abs(found - wanted).max() <= (1 if dtype == "int8" else 0)


def test_base64_is_the_bytes(server, model):
    response = server.post(ROUTE, {"input": TEXTS, "encoding_format": "base64"})
    packed = [base64.b64decode(each["embedding"]) for each in response.json()["data"]]
    found = np.array([np.frombuffer(each, "<f4") for each in packed])
    np.testing.assert_allclose(found, model.encode(TEXTS).numpy(), atol=1e-5)
    floats = vectors(server.post(ROUTE, {"input": TEXTS})).astype(np.float32)
    np.testing.assert_allclose(found, floats, atol=1e-5)


def test_base64_of_bits(server, model):
    body = {"input": TEXTS, "encoding_format": "base64", "output_dtype": "ubinary"}
    (first, *_) = server.post(ROUTE, body).json()["data"]
    wanted = model.encode(TEXTS, precision="ubinary")[0].numpy().tobytes()
    assert base64.b64decode(first["embedding"]) == wanted


def test_what_the_answer_tells(server, model):
    texts = ["a b c", "word " * 999, f"x={'y' * 101}", "\u200b"]
    response = server.post(ROUTE, {"input": texts, "truncate": True})
    answer = response.json()
    tokens = sum(map(len, model.token_ids(texts)))
    assert answer["object"] == "list"
    assert answer["model"] == "lastword-builtin-embedding"
    assert answer["space"] == model.info.space_fingerprint()
    assert [each["index"] for each in answer["data"]] == [0, 1, 2, 3]
    assert [each["truncated"] for each in answer["data"]] == [False, True, False, False]
    assert answer["usage"] == {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "computed_tokens": tokens,
        "truncated_inputs": 1,
        "unknown_inputs": 2,
    }
    assert response.headers["x-lastword-truncated-inputs"] == "1"
    assert response.headers["x-lastword-unknown"] == "2"
    assert response.headers["x-lastword-space"] == answer["space"]


def test_equal_texts_are_computed_once(server):
    usage = server.post(ROUTE, {"input": ["the same text again"] * 8}).json()["usage"]
    assert usage["prompt_tokens"] == 8 * usage["computed_tokens"]


REFUSED = [
    ({}, 400, "input: field required."),
    ({"input": None}, 400, "input: field required."),
    ({"input": []}, 400, "input: empty; expected at least one text."),
    ({"input": 3}, 400, "input: wrong type; "),
    ({"input": [["a"]]}, 400, "input: wrong type; "),
    ({"input": ["a", 3]}, 400, "input: wrong type; "),
    ({"input": [True]}, 400, "input: wrong type; "),
    ({"input": {"text": "a"}}, 400, "input: wrong type; "),
    ({"input": [1, 2]}, 400, "input: token ids are not accepted"),
    ({"input": [[1, 2]]}, 400, "check_embedding_ctx_length=False"),
    ({"input": ["a"] * 2049}, 413, "input: too many; got 2,049, expected at most 2,048."),
    ({"input": ["a", "b " * 300]}, 413, "input 1: too long; got 301 tokens, 45 too many, expected at most 256."),
    ({"input": "a", "late_chunking": True}, 400, "late_chunking: "),
    ({"input": "a", "instruction": "x"}, 400, "instruction: unknown field."),
    ({"input": "a", "dimensions": 0}, 400, "dimensions: "),
    ({"input": "a", "dimensions": 257}, 400, "dimensions: out of range; got 257"),
    ({"input": "a", "dimensions": "64"}, 400, "dimensions: "),
    ({"input": "a", "dimensions": 64, "output_dimension": 32}, 400, "dimensions: given twice"),
    ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format: "),
    ({"input": "a", "encoding_format": "uint8"}, 400, "uint8: needs ranges."),
    ({"input": "a", "encoding_format": "binary", "dimensions": 12}, 400, "binary: packs 8"),
    ({"input": "a", "encoding_format": "int8", "output_dtype": "binary"}, 400, "two different"),
    ({"input": "a", "prompt": "x", "task": "query"}, 400, "prompt: give only one of"),
    ({"input": "a", "prompt_name": "nothing"}, 400, "prompt: unknown name; got 'nothing'"),
    ({"input": "a", "task": "separation"}, 400, "prompt: unknown name; got 'separation'"),
    ({"input": "a", "normalized": False}, 400, "normalize: false is not possible"),
    ({"input": "a", "model": "gpt-4"}, 404, "model: 'gpt-4' is not served here"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "message"), REFUSED)
def test_refused(server, body, status, message):
    response = server.post(ROUTE, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[1]", b'"a"', b'{"input": NaN}', b'{"input": "\xff"}', b'{"input": "\\ud800"}',
     b'{"input": ' + b"[" * 100_000, b"\x00", b'{"input": 1e999}'],
)  # fmt: skip
def test_what_is_no_body_is_refused(server, body):
    with server.client() as client:
        response = client.post(ROUTE, content=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_texts_of_many_clients_at_once_get_their_own_vectors(server, model):
    texts = [f"{'text ' * (n % 7)} number {n}" for n in range(64)]
    wanted = model.encode(texts).numpy()
    found: dict[int, np.ndarray] = {}

    def ask(number):
        with server.client() as client:
            for n in range(number, 64, 8):
                found[n] = vectors(client.post(ROUTE, json={"input": texts[n]}))[0]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.array([found[n] for n in range(64)]), wanted, atol=1e-5)


def test_token_ids_where_they_are_accepted(model):
    settings = Settings(
        port=0, accept_token_ids=True, limits=Limits(max_inputs=3, max_request_tokens=300)
    )
    with running(lambda: Embedder(device="cpu"), settings) as server:
        ids = model.info.tokenizer.encode([TEXTS[0]], 99).ids[0]
        before, after = len(model.info.tokenizer.before), len(model.info.tokenizer.after)
        bare = ids[before : len(ids) - after]
        wanted = model.encode(TEXTS[0]).numpy()
        for given in (bare, [bare]):
            found = vectors(server.post(ROUTE, {"input": given}))[0]
            np.testing.assert_allclose(found, wanted, atol=1e-5)
        prompted = vectors(server.post(ROUTE, {"input": bare, "prompt_name": "query"}))[0]
        wanted = model.encode(TEXTS[0], prompt_name="query").numpy()
        np.testing.assert_allclose(prompted, wanted, atol=1e-5)
        unknown = server.post(ROUTE, {"input": [[1], [10**9]]})
        assert unknown.status_code == 400
        assert "input 1: unknown token" in unknown.text
        assert server.post(ROUTE, {"input": ["a"] * 4}).status_code == 413
        many = server.post(ROUTE, {"input": ["a b c d " * 40] * 2})
        assert many.status_code == 413
        assert "too many tokens in one request" in many.text


def test_ranges_for_uint8(model):
    ranges = torch.stack([torch.full((256,), -0.2), torch.full((256,), 0.2)])
    with running(lambda: Embedder(device="cpu"), ranges=ranges) as server:
        for dtype in ("uint8", "int8"):
            found = vectors(server.post(ROUTE, {"input": TEXTS, "encoding_format": dtype}))
            wanted = model.encode(TEXTS, precision=dtype, ranges=ranges).numpy().astype(int)
            assert np.abs(found - wanted).max() <= 1
        other = server.post(ROUTE, {"input": "a", "encoding_format": "uint8", "dimensions": 8})
        assert other.status_code == 400


def test_openai_client(server, model):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.embeddings.create(
            model="lastword-builtin-embedding", input=TEXTS, dimensions=64
        )
        found = np.array([each.embedding for each in answer.data])
        np.testing.assert_allclose(found, model.encode(TEXTS, truncate_dim=64).numpy(), atol=1e-5)
        assert [each.id for each in client.models.list()] == ["lastword-builtin-embedding"]
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.BadRequestError, match="expected at least one text"):
            client.embeddings.create(model="lastword-builtin-embedding", input=[])
