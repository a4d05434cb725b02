"""Bad requests at the socket and in bodies: never a 5xx or a hang, and the next good request is answered as ever."""

import json
import random
import socket

import pytest

from lastword.serve.errors import ServeError
from lastword.serve.protocols.body import read_json

ROUTE = "/v1/embeddings"
GOOD = {"input": "a good text", "encoding_format": "base64"}
BODY = b'{"input": "a"}'
POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n"
END = b"Connection: close\r\n\r\n"

SOCKET = {
    "nothing that is HTTP": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "another version": b"GET /health HTTP/3.7\r\nHost: a\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a header without a colon": POST + b"nothing\r\n" + END,
    "a header that goes on in the next line": POST + b"X: a\r\n b\r\n" + END,
    "a space before the colon": POST + b"Content-Length : 3\r\n" + END + b"{}x",
    "NUL in a header": POST + b"X: a\x00b\r\n" + END,
    "10,000 headers": POST + b"X: a\r\n" * 10_000 + END,
    "a long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "two lengths": POST + b"Content-Length: 14\r\nContent-Length: 15\r\n" + END + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n" + END + BODY,
    "a length in words": POST + b"Content-Length: ten\r\n" + END + BODY,
    "a length of 30 digits": POST + b"Content-Length: " + b"9" * 30 + b"\r\n" + END + BODY,
    "a length with a plus": POST + b"Content-Length: +14\r\n" + END + BODY,
    "length and chunks": POST + b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n" + END + b"0\r\n\r\nGET",
    "another encoding": POST + b"Transfer-Encoding: gzip\r\n" + END + BODY,
    "chunks of no size": POST + b"Transfer-Encoding: chunked\r\n" + END + b"zz\r\n{}\r\n0\r\n\r\n",
    "a chunk of a huge size": POST + b"Transfer-Encoding: chunked\r\n" + END + b"f" * 30 + b"\r\n",
    "more than the length": POST + b"Content-Length: 14\r\n" + END + BODY + b"GET / HTTP/1.1\r\n\r\n",
    "a proxy's address": b"GET http://elsewhere/health HTTP/1.1\r\nHost: a\r\n" + END,
    "CONNECT": b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: a\r\n" + END,
    "a path outside": b"GET /v1/models/../../etc/passwd HTTP/1.1\r\nHost: a\r\n" + END,
    "an escaped path": b"GET /v1/models/%2e%2e%2f%00 HTTP/1.1\r\nHost: a\r\n" + END,
    "a method of its own": b"BREW /v1/embeddings HTTP/1.1\r\nHost: a\r\n" + END,
    "HEAD": b"HEAD /info HTTP/1.1\r\nHost: a\r\n" + END,
    "OPTIONS": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n" + END,
    "a websocket": b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "a strange host": b"GET /health HTTP/1.1\r\nHost: a/?#@b\r\n" + END,
    "a body of bytes": POST + b"Content-Length: 4\r\n" + END + b"\xff\xfe\x00\x01",
}  # fmt: skip


@pytest.mark.parametrize("name", SOCKET)
def test_at_the_socket(server, name):
    good = server.post(ROUTE, GOOD).json()["data"]
    with socket.create_connection(("127.0.0.1", server.server.port), timeout=20) as connection:
        connection.sendall(SOCKET[name])
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while more := connection.recv(65536):
            got += more
    statuses = [int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:]]
    assert all(200 <= status < 500 for status in statuses), got
    assert server.post(ROUTE, GOOD).json()["data"] == good


def test_pipelined_requests_are_answered_in_order(server):
    one = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nx-request-id: "
    with socket.create_connection(("127.0.0.1", server.server.port), timeout=20) as connection:
        connection.sendall(
            b"".join(one + b"%d\r\n\r\n" % n for n in range(5)) + one + b"5\r\n" + END
        )
        got = b""
        while more := connection.recv(65536):
            got += more
    order = [line[-1:] for line in got.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert order == [b"0", b"1", b"2", b"3", b"4", b"5"]


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
