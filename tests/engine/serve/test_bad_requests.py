"""Bad bodies: never a 5xx or a hang, whatever the fields and bytes; `test_bad_sockets.py` has the bytes around them."""

import json
import random

import pytest

from lastword.serve.errors import ServeError
from lastword.serve.protocols.body import read_json

ROUTE = "/v1/embeddings"
PATHS = (ROUTE, "/embed", "/", "/similarity", "/tokenize", "/decode", "/v2/embed", "/api/embed")
VALUES = (None, True, -1, 0, 1, 2**70, 1.5, "", "a", "query", [], ["a"], ["a", 1], [[]], [[1]], {}, {"a": "b"},
          {"source_sentence": "a", "sentences": ["b"]}, "NONE", "END", "float", "base64", ["float"])  # fmt: skip
FIELDS = ("input", "inputs", "texts", "ids", "model", "dimensions", "encoding_format", "prompt", "prompt_name",
          "task", "truncate", "truncation_direction", "normalize", "embedding_types", "output_dimension",
          "max_tokens", "options", "parameters", "late_chunking", "skip_special_tokens", "query")  # fmt: skip


def test_bodies_of_any_fields(server):
    draw = random.Random(7)
    with server.client() as client:
        for _ in range(400):
            path = draw.choice(PATHS)
            body = {draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.randint(1, 3))}
            response = client.post(path, json=body)
            assert response.status_code in (200, 400, 404, 413, 422), (path, body, response.text)
            assert response.status_code == 200 or isinstance(response.json(), dict)


def test_damaged_bodies(server):
    draw = random.Random(8)
    whole = json.dumps({"input": ["a", "ü"], "dimensions": 8, "user": "\u2028"}).encode()
    with server.client() as client:
        for _ in range(300):
            body = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                body[draw.randrange(len(body))] = draw.randrange(256)
            response = client.post(ROUTE, content=bytes(body[: draw.randint(1, len(body))]))
            assert response.status_code in (200, 400, 404, 413), (bytes(body), response.text)


# Bodies with a key twice in one object, and the key.
TWICE = {
    "at the top": (b'{"input": "a", "input": "b"}', "input"),
    "with spaces": (b'{"input" : "a",\n"input"\t: "a"}', "input"),
    "escaped": (b'{"input": "a", "\\u0069nput": "b"}', "input"),
    "inside": (b'{"inputs": {"source_sentence": "a", "sentences": ["b"], "sentences": ["c"]}}', "sentences"),
    "in a list": (b'{"query": "q", "documents": [{"text": "a"}, {"text": "b", "text": "c"}]}', "text"),
    "after a text in a list": (b'{"documents": ["a", {"text": "b", "text": "c"}]}', "text"),
    "in a list of lists": (b'{"inputs": [["a", {"text": "b", "text": "c"}]]}', "text"),
    "in a list alone": (b'[{"text": "b", "text": "c"}]', "text"),
    "among many": (b"{" + b", ".join(b'"%d": 0' % i for i in range(99)) + b', "7": 1}', "7"),
}  # fmt: skip


@pytest.mark.parametrize("case", TWICE)
def test_a_key_twice_is_refused(case):
    body, key = TWICE[case]
    with pytest.raises(ServeError, match=f'body: not valid JSON .key "{key}" occurs twice'):
        read_json(body)


def test_what_only_looks_like_a_key_twice_is_read():
    value = {
        "input": ["input", '"input"', "input", "\u00e9", "\\u0041"],
        "documents": [{"text": "text"}, {"text": "b"}],
    }
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(b"[]") == []
    assert read_json(b'"input"') == "input"


def test_a_key_twice_and_a_wrong_field_over_http(server):
    with server.client() as client:
        assert client.post(ROUTE, content=TWICE["at the top"][0]).status_code == 400
        for body in ({"input": "a"}, {"input": "a", "truncate": 7}):
            answer = client.post("/embed", json=body)
            assert answer.status_code == 422
            assert "input: unknown field; inputs missing." in answer.text
