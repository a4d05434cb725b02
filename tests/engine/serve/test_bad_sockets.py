"""A table of 300 bad or odd requests at the socket: each has its statuses or is closed, and the server answers on.

Each case is the bytes of one connection and the statuses that are right for it; () is a connection closed without an
answer. Pipelined requests have a status each.
"""

# ruff: noqa: E501  a table
import socket
import time

import pytest
from helpers.serving.servers import running

from lastword import Embedder
from lastword.serve.settings import Limits, Settings

ROUTE = "/v1/embeddings"
GOOD = {"input": "a good text", "encoding_format": "base64"}
BODY = b'{"input": "a"}'
HOST = b"Host: a\r\n"
CLOSE = b"Connection: close\r\n\r\n"
LENGTH = b"Content-Length: 14\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def post(headers=b"", body=b"", path=b"/v1/embeddings"):
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + headers + CLOSE + body


def sized(body, path=b"/v1/embeddings", headers=b""):
    return post(headers + b"Content-Length: %d\r\n" % len(body), body, path)


def get(path=b"/v1/models", headers=b"", version=b"HTTP/1.1"):
    return b"GET " + path + b" " + version + b"\r\n" + HOST + headers + CLOSE


CASES: dict[str, tuple[bytes, tuple[int, ...]]] = {}


def case(name, sent, *statuses):
    assert name not in CASES
    CASES[name] = sent, statuses


def first_lines():
    for number, line in enumerate(
        (b"", b"\x00", b" ", b"GET", b"GET ", b"GET  HTTP/1.1", b"GET /info", b"get /info HTTP/1.1 x", b" GET / HTTP/1.1",
         b"GET /info HTTP/1.1 ", b"GET\t/info\tHTTP/1.1", b"GET /in fo HTTP/1.1", b"GET /info HTTP/", b"GET /info HTTP/1",
         b"GET /info HTTP/1.", b"GET /info HTTP/11", b"GET /info http/1.1", b"GET /info HTTP/2.0", b"GET /info HTTP/0.9",
         b"GET /info HTTP/3.7", b"GET /info HTTP/-1.1", b"GET /info HTTP/1.1\x00", b"G\x00T /info HTTP/1.1", b"GE(T /info HTTP/1.1",
         b"GET /\x00 HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET /\xff\xfe HTTP/1.1", b"GET /\xc3\xbc HTTP/1.1",
         b"\xef\xbb\xbfGET / HTTP/1.1", b"PRI * HTTP/2.0", b"SSH-2.0-x", b"\x16\x03\x01\x02\x00\x01\x00", b"EHLO a",
         b"*1\r\n$4\r\nPING", b"{}", b"HTTP/1.1 200 OK")
    ):  # fmt: skip
        case(
            f"first line {number}: {line[:24]!r}",
            line + b"\r\n" + HOST + CLOSE,
            *ANSWERS.get(line, (400,)),
        )


# What is answered to the first lines that are no error for every server.
ANSWERS: dict[bytes, tuple[int, ...]] = {
    b"GET /info HTTP/2.0": (200,),
    b"GET /info HTTP/0.9": (200,),
    b"GET /info HTTP/3.7": (200,),
    b"PRI * HTTP/2.0": (404,),
}


def methods():
    for method in (
        b"HEAD",
        b"PUT",
        b"DELETE",
        b"PATCH",
        b"OPTIONS",
        b"TRACE",
        b"BREW",
        b"CONNECT",
        b"PROPFIND",
    ):
        for path in (b"/v1/embeddings", b"/info"):
            case(
                f"{method.decode()} {path.decode()}",
                method + b" " + path + b" HTTP/1.1\r\n" + HOST + CLOSE,
                405,
            )
    for line in (b"CONNECT elsewhere:443", b"OPTIONS *"):
        case(line.decode(), line + b" HTTP/1.1\r\n" + HOST + CLOSE, 404)
    for path in (
        b"/v1/embeddings",
        b"/embed",
        b"/v2/embed",
        b"/api/embed",
        b"/rerank",
        b"/tokenize",
    ):
        case(f"GET {path.decode()}", get(path), 405)
    for path in (b"/health", b"/v1/models", b"/metrics", b"/openapi.json"):
        case(f"POST {path.decode()}", sized(BODY, path), 405)


def paths():
    for path in (b"//v1/embeddings", b"/v1/embeddings/", b"/v1/embeddings/..", b"/v1//models", b"/../etc/passwd",
                 b"/%2e%2e/etc/passwd", b"/v1/%65mbeddings%00", b"/%", b"/%zz", b"/%ff%fe", b"/" + b"a" * 9000,
                 b"/;", b"/embed;x=1", b"/.git/config", b"/cgi-bin/", b"/embed%0d%0aX:1", b"/EMBED"):  # fmt: skip
        case(f"path {path[:24]!r}", get(path), 404)
    for path in (b"*", b"info", b"?", b"http:/info", b"elsewhere:443"):
        case(f"target {path!r}", get(path), 404)
    for path in (
        b"/v1/models?" + b"a" * 9000,
        b"/v1/models?%00",
        b"/v1/models?a=1&a=2",
        b"/v1/models#x",
        b"/v1/%6dodels",
    ):
        case(
            f"a good path {path[:16]!r} and more", get(path), *((404,) if b"#" in path else (200,))
        )
    for name in (b"..", b"%2e%2e%2fetc", b"a/b/c", b"%00", b"%ff", b"x" * 2000, b"%F0%9F%A5%8A"):
        case(f"no model {name[:12]!r}", get(b"/v1/models/" + name), 404)
    case("a proxy's address", get(b"http://elsewhere/v1/models"), 404)


def lengths():
    for value in (b"-1", b"+14", b"1e1", b"14.0", b"0x0e", b"ten", b"", b" ", b"14 14", b"14;", b"\xff", b"14\x00", b"1_4",
                  b"\xd9\xa1\xd9\xa4"):  # fmt: skip
        case(f"length {value!r}", post(b"Content-Length: " + value + b"\r\n", BODY), 400)
    for value in (b"9" * 20, b"99999999"):
        case(
            f"length of {len(value)} digits", post(b"Content-Length: " + value + b"\r\n", BODY), 413
        )
    for value in (b"9" * 30, b"9" * 4000):
        case(
            f"length of {len(value)} digits", post(b"Content-Length: " + value + b"\r\n", BODY), 400
        )
    case("two lengths", post(LENGTH + b"Content-Length: 15\r\n", BODY), 400)
    case("two lengths in one line", post(b"Content-Length: 14, 15\r\n", BODY), 400)
    case("one length twice", post(LENGTH + LENGTH, BODY), 200)
    case("one length twice in one line", post(b"Content-Length: 14, 14\r\n", BODY), 200)
    case("zeros before the length", post(b"Content-Length: 0014\r\n", BODY), 200)
    case("no length", post(b"", BODY), 400)
    case("length 0", post(b"Content-Length: 0\r\n", BODY), 400)
    case("a length that is too small", post(b"Content-Length: 5\r\n", BODY), 400)
    case("more than the length", post(LENGTH, BODY + b"GET / HTTP/1.1\r\n\r\n"), 200)
    case("less than the length", post(b"Content-Length: 20\r\n", BODY), 408)


def chunks():
    whole = b"e\r\n" + BODY + b"\r\n"
    case("chunks", post(CHUNKED, whole + b"0\r\n\r\n"), 200)
    case("chunks with words", post(CHUNKED, b"e;a=b\r\n" + BODY + b"\r\n0\r\n\r\n"), 200)
    case("chunks with a trailer", post(CHUNKED, whole + b"0\r\nX: y\r\n\r\n"), 200)
    case("a size with zeros", post(CHUNKED, b"000e\r\n" + BODY + b"\r\n0\r\n\r\n"), 200)
    for size in (
        b"zz",
        b"",
        b"-1",
        b"+e",
        b"0xe",
        b" e",
        b"e ;",
        b"g",
        b"1.5",
        b"\xff",
        b"f" * 30,
        b"\x00",
        b"e\x00",
    ):
        case(f"size {size[:8]!r}", post(CHUNKED, size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"), 400)
    case("a chunk longer than its size", post(CHUNKED, b"2\r\n" + BODY + b"\r\n0\r\n\r\n"), 400)
    case("a size without an end", post(CHUNKED, b"e" * 70_000), 400)
    case("a trailer without an end", post(CHUNKED, whole + b"0\r\n" + b"X: y\r\n" * 20_000), 400)
    case("no last chunk", post(CHUNKED, whole), 408)
    case("no chunk", post(CHUNKED, b"0\r\n\r\n"), 400)
    case("lines without CR", post(CHUNKED, whole.replace(b"\r", b"") + b"0\n\n"), 408)
    for value in (b"gzip", b"identity", b"xchunked", b"chunked, gzip", b"gzip, chunked", b"chunked, identity", b"chunked;",
                  b"chunked, chunked", b"\x0bchunked", b"", b"chunke", b'"chunked"'):  # fmt: skip
        sent = post(b"Transfer-Encoding: " + value + b"\r\n", whole + b"0\r\n\r\n")
        case(f"encoding {value!r}", sent, 400)
    case("two encodings", post(CHUNKED + CHUNKED, whole + b"0\r\n\r\n"), 400)
    for number, both in enumerate(
        (LENGTH + CHUNKED, CHUNKED + LENGTH, b"Content-Length: 0\r\n" + CHUNKED)
    ):
        smuggled = whole + b"0\r\n\r\nGET /info HTTP/1.1\r\nHost: a\r\n\r\n"
        case(f"length and chunks {number}", post(both, smuggled), 400)
    case(
        "a space before the colon",
        post(b"Transfer-Encoding : chunked\r\n", whole + b"0\r\n\r\n"),
        400,
    )
    case(
        "encoding in a folded line",
        post(b"Transfer-Encoding:\r\n chunked\r\n", whole + b"0\r\n\r\n"),
        200,
    )
    case("a header that goes on in the next line", get(headers=b"X: a\r\n b\r\n"), 200)
    case(
        "chunks in HTTP/1.0",
        post(CHUNKED, whole + b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
        200,
    )


def headers():
    for number, line in enumerate(
        (b"nothing", b": a", b"X\x00: a", b"X: a\x00b", b"X y: a", b"X : a", b"X\xff: a", b"(X): a", b"X: a\rb", b"\x01: a",
         b"X: \x01", b" X: a", b"X[]: a", b"X=Y")
    ):  # fmt: skip
        case(f"header {number}: {line!r}", get(headers=line + b"\r\n"), *HEADERS.get(line, (400,)))
    case("no host", b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", 400)
    case("two hosts", get(headers=b"Host: b\r\n"), 400)
    for host in (b"a/?#@b", b"", b"\xff", b"[::1", b"a" * 3000, b"a b"):
        case(
            f"host {host[:8]!r}", b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\n" + CLOSE, 200
        )
    case("no host in HTTP/1.0", b"GET /v1/models HTTP/1.0\r\n\r\n", 200)
    case("a header of 40 KB", get(headers=b"X: " + b"a" * 40_000 + b"\r\n"), 431)
    case("a name of 40 KB", get(headers=b"a" * 40_000 + b": a\r\n"), 431)
    case("10,000 headers", get(headers=b"X: a\r\n" * 10_000), 431)
    case("1,000 headers", get(headers=b"X: a\r\n" * 1_000), 200)
    case("headers without CR", get().replace(b"\r\n", b"\n"), 200)
    case("a first line of 100 KB", get(b"/" + b"a" * 100_000), 431)
    case("lines before the request", b"\r\n\r\n" + get(), 400)
    case("an unfinished header", b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: ")
    case("an unfinished first line", b"GET /v1/mod")
    case("nothing", b"")
    for value in (b"a\tb", b"\xff", b"x" * 500, b"../../etc/passwd", b"<script>"):
        case(f"id {value[:8]!r}", get(headers=b"X-Request-Id: " + value + b"\r\n"), 200)
    for value in (b"100-continue", b"200-maybe", b""):
        case(
            f"expect {value!r}",
            sized(BODY, headers=b"Expect: " + value + b"\r\n"),
            *EXPECT.get(value, (200,)),
        )
    for value in (b"websocket", b"h2c", b"TLS/1.0"):
        sent = (
            b"GET /v1/models HTTP/1.1\r\nHost: a\r\nUpgrade: "
            + value
            + b"\r\nConnection: Upgrade, close\r\n\r\n"
        )
        case(f"upgrade {value!r}", sent, 200)
    for value in (b"gzip", b"br", b"deflate, gzip", b"zstd", b"", b"identity, identity"):
        case(f"packed {value!r}", sized(BODY, headers=b"Content-Encoding: " + value + b"\r\n"), 415)
    for value in (
        b"text/plain",
        b"",
        b"application/xml",
        b"multipart/form-data; boundary=x",
        b"application/json; charset=x",
    ):
        case(f"type {value!r}", sized(BODY, headers=b"Content-Type: " + value + b"\r\n"), 200)
    for name in (
        b"X-Forwarded-For",
        b"X-Original-URL",
        b"X-HTTP-Method-Override",
        b"Forwarded",
        b"Range",
        b"Cookie",
    ):
        case(f"{name.decode()} changes nothing", get(headers=name + b": /etc/passwd\r\n"), 200)


HEADERS: dict[bytes, tuple[int, ...]] = {b"X: \x01": (200,), b" X: a": (200,)}
EXPECT: dict[bytes, tuple[int, ...]] = {b"100-continue": (100, 200)}


def bodies():
    deep = b"[" * 100_000
    for number, body in enumerate(
        (b"", b" ", b"\x00", b"nul", b"null", b"true", b"1", b'"a"', b"[]", b"{}", b"{", b"{]", b"[1,]", b'{"input": "a",}',
         b"{'input': 'a'}", b"{input: 1}", b'{"input": NaN}', b'{"input": Infinity}', b'{"input": -Infinity}',
         b'{"input": "a", "dimensions": NaN}', b'{"input": "a", "dimensions": 1e400}', b'{"input": [1e400]}',
         b'{"input": "a", "dimensions": 01}', b'{"input": "a", "dimensions": ' + b"9" * 100_000 + b"}", b'{"input": "\xff"}',
         b'{"input": "\xed\xa0\x80"}', b'{"input": "\xc0\xaf"}', b'{"input": "\xf0\x9f\x98"}', b"\xff\xfe" + BODY,
         b"\xef\xbb\xbf" + BODY, BODY.decode().encode("utf-16"), BODY.decode().encode("utf-32"), b'{"input": "\\ud800"}',
         b'{"input": "\\uZZZZ"}', b'{"input": "a\nb"}', b'{"input": "a\x00b"}', b'{"input": "a"} x', BODY + BODY,
         b"/* x */" + BODY, deep, b'{"input":' + deep, b'{"a":' * 50_000, deep + b"]" * 100_000,
         b'{"input": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"input": "a", "input": []}', b'{"input": "a", "\\u0000": 1}',
         b'{"input": "a", "__proto__": {}}', b'{"input": "a", "model": "../../etc/passwd"}', b'{"input": [], "input": 1}',
         b'{"input": "a", "dimensions": 0}', b'{"input": "a", "dimensions": -1}', b'{"input": "a", "dimensions": 257}',
         b'{"input": "a", "dimensions": 8.0}', b'{"input": "a", "dimensions": true}', b'{"input": "a", "dimensions": "8"}',
         b'{"input": "a", "encoding_format": "b64"}', b'{"input": "a", "encoding_format": []}', b'{"input": {"a": "b"}}',
         b'{"input": [["a"]]}', b'{"input": ["a", 1]}', b'{"input": [null]}', b'{"input": [true]}', b'{"input": [-1]}',
         b'{"input": [[]]}', b'{"input": [[[1]]]}', b'{"input": [1.5]}', b'{"input": "a", "model": 1}',
         b'{"input": "a", "prompt": 1}', b'{"input": "a", "prompt_name": "none"}', b'{"input": "a", "truncate": "yes"}',
         b'{"input": "a", "late_chunking": true}', b'{"input": "a", "tools": []}', b'{"Input": "a"}',
         b'{"input": ' + b'["a",' * 1 + b'"a"' + b',"a"' * 2100 + b"]}", b'{"input": "' + b"a b " * 3000 + b'"}', b"<a/>",
         b"input=a", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", b"\x1f\x8b\x08\x00", b"[" + BODY + b"]")
    ):  # fmt: skip
        expected = BODIES.get(number, (400,))
        case(f"body {number}: {body[:24]!r}", sized(body), *expected)
    case("a key twice", sized(b'{"input": "b", "input": "a"}'), 400)
    for name, body in {"an escaped key": b'{"\\u0069nput": "a"}',
                       "spaces around": b" \r\n\t" + BODY + b"\n" * 1000, "null for all": b'{"input": "a", "user": null}',
                       "an empty text": b'{"input": ""}', "NUL in a text": b'{"input": "a\\u0000b"}'}.items():  # fmt: skip
        case(name, sized(body), 200)


# Which of the bodies is too long, or asks for a model that is not served.
BODIES: dict[int, tuple[int, ...]] = {47: (404,), 73: (413,), 74: (413,)}


def pipelines():
    one = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
    case("two at once", one + get(), 200, 200)
    case("ten at once", one * 9 + get(), *(200,) * 10)
    case("a bad one behind a good one", one + b"nothing\r\n\r\n", 200, 400)
    case("a good one behind a bad one", b"nothing\r\n\r\n" + one, 400)
    case(
        "a good one behind an unknown path",
        get(b"/none").replace(b"Connection: close\r\n", b"") + get(),
        404,
        200,
    )
    whole = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n" + LENGTH + b"\r\n" + BODY
    case(
        "two bodies at once",
        whole + whole.replace(LENGTH, LENGTH + b"Connection: close\r\n"),
        200,
        200,
    )
    case(
        "a good one behind a bad body",
        whole.replace(BODY, b'{"inputs": "a'[:14].ljust(14)) + get(),
        400,
        200,
    )
    case("what follows a close", get() + one, 200)


for fill in (first_lines, methods, paths, lengths, chunks, headers, bodies, pipelines):
    fill()


@pytest.fixture(scope="module")
def served():
    """A server that waits for no client longer than a second."""
    limits = Limits(body_seconds=1)
    with running(lambda: Embedder(device="cpu"), Settings(port=0, limits=limits)) as found:
        found.good = found.post(ROUTE, GOOD).json()["data"]
        yield found


def statuses_of(served, sent):
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=20) as connection:
        got = b""
        try:
            connection.sendall(sent)
            while more := connection.recv(65536):
                got += more
        except (ConnectionResetError, BrokenPipeError):  # closed before all was read
            pass
    return tuple(int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:])


def test_there_are_three_hundred():
    assert len(CASES) >= 300


@pytest.mark.parametrize("name", CASES)
def test_at_the_socket(served, name):
    sent, expected = CASES[name]
    assert statuses_of(served, sent) == expected
    assert served.post(ROUTE, GOOD).json()["data"] == served.good


def test_a_smuggled_request_is_not_answered(served):
    head = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST + LENGTH + CHUNKED + b"\r\n"
    whole = b"e\r\n" + BODY + b"\r\n0\r\n\r\n"
    assert statuses_of(served, head + whole + get()) == (400,)


def test_pipelined_requests_are_answered_in_order(served):
    one = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nx-request-id: "
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=20) as connection:
        connection.sendall(
            b"".join(one + b"%d\r\n\r\n" % n for n in range(5)) + one + b"5\r\n" + CLOSE
        )
        got = b""
        while more := connection.recv(65536):
            got += more
    order = [line[-1:] for line in got.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert order == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_client_that_sends_a_byte_at_a_time_is_closed(served):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=20) as connection:
        with pytest.raises(OSError):
            for byte in get(headers=b"X: " + b"a" * 1000):
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
    assert time.monotonic() - began < 10
