"""run-batch gives the answers of the server, byte for byte, and an error for each line that is no request."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.serving.servers import Running, running
from helpers.small_models import make_reranker

from lastword import Embedder, Reranker
from lastword.cli.main import main
from lastword.serve.settings import Limits, Settings

TEXTS = ["how do plants make sugar?", "", "zwölf Boxkämpfer 🥊", "how do plants", "a " * 90]
MODEL = "lastword-builtin-embedding"
OPTIONS = ("--max-inputs", "7", "--max-request-tokens", "1500")
LIMITS = Limits(max_inputs=7, max_request_tokens=1500)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("batch") / "small-reranker")


@pytest.fixture(scope="module")
def server(reranker: Path):
    settings = Settings(port=0, limits=LIMITS)
    with running(
        lambda: Embedder(device="cpu"),
        settings,
        load_reranker=lambda: Reranker(reranker, device="cpu"),
    ) as found:
        yield found


@pytest.fixture(scope="module")
def lenient():
    settings = Settings(port=0, truncate=True, accept_token_ids=True)
    with running(lambda: Embedder(device="cpu"), settings) as found:
        yield found


def request(body: object, custom_id: str = "a", url: str = "/v1/embeddings", **others) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body} | others


def write_lines(lines: list[object]) -> None:
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    Path("in.jsonl").write_bytes(b"".join(line + b"\n" for line in data))


def run_batch(lines: list[object], *options: object, name: str = "out.jsonl") -> list[bytes]:
    """Run the command on lines, which are written as JSON unless they are bytes; return the output's lines."""
    write_lines(lines)
    arguments = ["run-batch", "-i", "in.jsonl", "-o", name, "--device", "cpu", "--quiet"]
    assert main([*arguments, *map(str, options)]) == 0
    return Path(name).read_bytes().splitlines(keepends=True)


def body_of(line: bytes) -> bytes:
    """Return the body of the response as it is written in a line."""
    assert line.endswith(b'},"error":null}\n')
    return line.partition(b'"body":')[2].removesuffix(b'},"error":null}\n')


def check(server: Running, url: str, body: object, *options: object) -> int:
    """Check that the answer is the server's; return its status."""
    expected = server.post(url, body)
    (line,) = run_batch([request(body, url=url)], *OPTIONS, *options)
    found, given = json.loads(line)["response"], body_of(line)
    if url == "/v1/rerank" and expected.status_code == 200:  # the server's id is a random number
        ids = (json.loads(each)["id"] for each in (expected.content, given))
        name, other = (each.encode() for each in ids)
        assert given.replace(other, name) == expected.content
    else:
        assert given == expected.content
    assert found["status_code"] == expected.status_code
    return expected.status_code


@pytest.mark.parametrize(
    "body",
    [
        {"input": TEXTS[0]},
        {"input": TEXTS},
        {"input": ["same"] * 5 + ["other"]},
        {"input": TEXTS, "model": MODEL, "user": "me", "encoding_format": "base64"},
        {"input": TEXTS, "dimensions": 64},
        {"input": TEXTS, "encoding_format": "int8"},
        {"input": TEXTS, "output_dtype": "ubinary", "dimensions": 32},
        {"input": TEXTS, "input_type": "query"},
        {"input": TEXTS, "prompt": "one two three four five six seven eight nine ten: "},
        {"input": "word " * 300, "truncate": True},
    ],
)
def test_vectors_are_the_servers(server: Running, body: dict) -> None:
    assert check(server, "/v1/embeddings", body) == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"input": []}, 400),
        ({"input": 5}, 400),
        ({"input": [1, 2, 3]}, 400),
        ({"input": "a", "colour": 1}, 400),
        ({"input": "a", "model": "other"}, 404),
        ({"input": "a", "dimensions": 257}, 400),
        ({"input": "a", "encoding_format": "uint8"}, 400),
        ({"input": "a", "prompt_name": "none"}, 400),
        ({"input": "a", "late_chunking": True}, 400),
        ({"input": "word " * 300}, 413),
        ({"input": ["a"] * 8}, 413),
        ({"input": ["a " * 220] * 7}, 413),
        ([], 400),
    ],
)
def test_refusals_are_the_servers(server: Running, body: object, status: int) -> None:
    assert check(server, "/v1/embeddings", body) == status


@pytest.mark.parametrize("body", [{"input": [5, 6, 7]}, {"input": "word " * 300}], ids=("ids", "long"))  # fmt: skip
def test_settings_are_the_servers(lenient: Running, body: dict) -> None:
    assert check(lenient, "/v1/embeddings", body, "--truncate", "--accept-token-ids") == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"query": "the cat", "documents": TEXTS}, 200),
        ({"query": "the cat", "documents": [{"text": "yes"}, "no"], "top_n": 1}, 200),
        ({"query": "q", "documents": TEXTS, "return_documents": False, "instruct": "x"}, 200),
        ({"query": "q", "documents": TEXTS, "use_activation": False}, 200),
        ({"query": "q", "documents": []}, 400),
        ({"query": "q", "texts": ["a"]}, 400),
        ({"query": "q", "documents": ["a"], "model": MODEL}, 404),
    ],
)
def test_scores_are_the_servers(server: Running, reranker: Path, body: dict, status: int) -> None:
    assert check(server, "/v1/rerank", body, "--reranker", reranker) == status


def test_a_reranker_alone(server: Running, reranker: Path) -> None:
    body = {"query": "the cat", "documents": TEXTS}
    assert check(server, "/v1/rerank", body, "--model", reranker) == 200
    (line,) = run_batch([request({"input": "a"})], "--model", reranker, name="other.jsonl")
    error = json.loads(line)["error"]
    assert error["code"] == "invalid_url"
    assert "the model is a reranker" in error["message"]


def test_ranges(tmp_path: Path) -> None:
    Path("texts.txt").write_text("\n".join(["some words", *TEXTS[2:]]))
    ranges = ("embed", "texts.txt", "-o", "v.npy", "--save-ranges", "r.safetensors", "--quiet")
    assert main(list(ranges)) == 0
    body = {"input": "some words", "encoding_format": "uint8"}
    (line,) = run_batch([request(body)], "--ranges", "r.safetensors")
    vector = json.loads(line)["response"]["body"]["data"][0]["embedding"]
    assert all(0 <= value <= 255 for value in vector)


def test_the_texts_of_many_requests_are_computed_together(reranker: Path) -> None:
    texts = [f"{TEXTS[number % 2]} It is known: {TEXTS[0]} {number}" for number in range(60)]
    lines = [request({"input": text}, str(number)) for number, text in enumerate(texts)]
    query = {"query": "the cat", "documents": ["yes", "the cat"]}
    lines[7:7] = [request(query, "r", "/v1/rerank")]
    lines[9:9] = [request({"input": texts[:5], "dimensions": 16}, "five")]
    found = [json.loads(line) for line in run_batch(lines, "--reranker", reranker)]
    assert [each["custom_id"] for each in found] == [each["custom_id"] for each in lines]
    bodies = {each["custom_id"]: each["response"]["body"] for each in found}
    model = Embedder(device="cpu")
    vectors = [bodies[str(number)]["data"][0]["embedding"] for number in range(60)]
    np.testing.assert_allclose(vectors, model.encode(texts).numpy(), atol=1e-5)
    vectors = [each["embedding"] for each in bodies["five"]["data"]]
    np.testing.assert_allclose(vectors, model.encode(texts[:5], truncate_dim=16), atol=1e-5)
    ids = model.token_ids(texts)
    usage = [bodies[str(number)]["usage"] for number in range(60)]
    assert [each["prompt_tokens"] for each in usage] == [len(each) for each in ids]
    computed = sum(each["computed_tokens"] for each in usage)
    assert computed < 0.9 * sum(len(each) for each in ids)  # beginnings are shared across requests
    scores = [each["relevance_score"] for each in bodies["r"]["results"]]
    expected = Reranker(reranker, device="cpu").rank("the cat", query["documents"])
    np.testing.assert_allclose(scores, [each["score"] for each in expected], atol=1e-5)
    assert len({each["id"] for each in found}) == len(found)


BODY = {"input": "a"}
LINES = {
    "get": (request(BODY, method="GET"), "a", "invalid_method", "'POST'"),
    "no method": (
        {"custom_id": "a", "url": "/v1/embeddings", "body": BODY},
        "a", "missing_required_parameter", "method",
    ),
    "other url": (request(BODY, url="/v1/chat"), "a", "invalid_url", "/v1/embeddings or /v1/rerank"),
    "no reranker": (request(BODY, url="/v1/rerank"), "a", "invalid_url", "--reranker"),
    "no body": (request(None), "a", "missing_required_parameter", "body: field required"),
    "more": (request(BODY, colour=1), "a", "unknown_parameter", "colour: unknown field"),
    "no id": (
        {"method": "POST", "url": "/v1/embeddings", "body": BODY},
        None, "missing_required_parameter", "custom_id",
    ),
    "number as id": (request(BODY, custom_id=5), None, "invalid_value", "custom_id"),
    "no object": ([1], None, "invalid_json_line", "not a JSON object"),
    "no JSON": (b"{", None, "invalid_json_line", "not valid JSON"),
    "no UTF-8": (b'{"custom_id": "\xff"}', None, "invalid_json_line", "not UTF-8 at byte 15"),
    "twice a key": (b'{"custom_id": "a", "custom_id": "b"}', None, "invalid_json_line", "custom_id"),
    "twice": (request(BODY, custom_id="first"), "first", "duplicate_custom_id", "'first' was given before, in line 1"),
    "long": (request({"input": "x" * 2000}), "a", "line_too_long", "expected at most 1,000"),
    "long, id last": (
        {"body": {"input": "x" * 2000}, "custom_id": "a"}, None, "line_too_long", "too long; got 2,0"
    ),
    "long, cut id": (request({}, "i" * 3000), None, "line_too_long", "too long"),
    "long, bad escape": (
        b'{"custom_id": "\\q", "body": "%s"}' % (b"x" * 2000), None, "line_too_long", "too long"
    ),
    "long, no UTF-8": (
        b'{"custom_id": "\xff", "body": "%s"}' % (b"x" * 2000), None, "line_too_long", "too long"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_a_line_that_is_no_request(kind: str) -> None:
    line, custom_id, code, message = LINES[kind]
    given = [request(BODY, "first"), line, b"  ", request(BODY, "last")]
    first, found, last = map(json.loads, run_batch(given, "--max-body-bytes", "1000"))
    assert first["response"]["status_code"] == last["response"]["status_code"] == 200
    assert set(found) == {"id", "custom_id", "response", "error"}
    assert (found["custom_id"], found["response"]) == (custom_id, None)
    assert found["error"]["code"] == code
    assert found["error"]["message"].startswith("line 2: ")
    assert message in found["error"]["message"]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("more", [0, 1, 2, 3, 100])
def test_the_longest_line(end: bytes, more: int) -> None:
    lines = [json.dumps(request(BODY, each)).encode() for each in "ab"]
    data = (lines[0].ljust(len(lines[0]) + more), lines[1])
    Path("in.jsonl").write_bytes((end or b"\n").join(data) + end)
    arguments = ("--device", "cpu", "--quiet", "--max-body-bytes", str(len(lines[0])))
    assert main(["run-batch", "-i", "in.jsonl", "-o", "out.jsonl", *arguments]) == 0
    first, second = map(json.loads, Path("out.jsonl").read_bytes().splitlines())
    assert second["response"]["status_code"] == 200
    if more:
        assert first["error"]["code"] == "line_too_long"
        assert (
            f"got {len(data[0]):,} bytes, expected at most {len(lines[0]):,}"
            in first["error"]["message"]
        )
    else:
        assert first["response"]["status_code"] == 200


def test_a_text_that_cannot_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(rows):
        return [row for row in range(len(rows)) if rows[row].abs().argmax() == worst]

    worst = Embedder(device="cpu").encode("bad").abs().argmax()
    monkeypatch.setattr("lastword.runtime.results.rows_without_direction", bad)
    _, found, _ = run_batch([request({"input": t}, t) for t in ("how do plants", "bad", "y")])
    response = json.loads(found)["response"]
    assert response["status_code"] == 503
    assert (
        "text of the request: its vector is zero or not finite"
        in (response["body"]["error"]["message"])
    )


def test_a_second_reranker_keeps_its_batches(
    reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lastword.cli import options

    def load(args, model: str) -> Reranker:
        loaded = open_second(args, model)
        loaded.max_batch_tokens = next(defaults)
        return loaded

    open_second, defaults = options.open_second_reranker, iter((200, 300))
    monkeypatch.setattr(options, "open_second_reranker", load)
    lines = [
        request({"input": "a"}),
        request({"query": "q", "documents": ["a"]}, "r", "/v1/rerank"),
    ]
    chosen = ("--reranker", reranker, "--max-batch-tokens", 100)
    assert run_batch(lines, *chosen) == run_batch(lines, *chosen)
    settings = json.loads(Path("out.jsonl.run.json").read_bytes())["settings"]
    found = [
        settings[f"--max-batch-tokens for {path}"] for path in ("/v1/embeddings", "/v1/rerank")
    ]
    assert found == [100, 200]


def test_summary(capfd: pytest.CaptureFixture) -> None:
    lines = [request(BODY, "a"), b"{", request({"input": ["b", "c"]}, "b"), request({}, "c")]
    run_batch(lines)
    assert capfd.readouterr() == ("", "")
    assert main(["run-batch", "-i", "in.jsonl", "-o", "-"]) == 0
    out, err = capfd.readouterr()
    assert out.encode() == Path("out.jsonl").read_bytes()
    assert "this run: 3 texts, 6 tokens, " in err
    assert "4 requests, 2 with an error; the first: custom_id None: line 2: not valid JSON" in err


def test_dry_run(capfd: pytest.CaptureFixture) -> None:
    write_lines([request({"input": ["a", "b"]}, "a"), b"{", request({"input": []}, "b")])
    assert main(["run-batch", "-i", "in.jsonl", "--dry-run", "--quiet"]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[0].startswith("line 2: not valid JSON")
    assert shown[1:] == [
        "line 3: input: empty; expected at least one text.",
        "in.jsonl: 3 requests, 2 texts, 4 tokens, 2 with an error",
    ]
    assert [path.name for path in Path().iterdir()] == ["in.jsonl"]


def test_dry_run_of_a_run_that_is_to_go_on(capfd: pytest.CaptureFixture) -> None:
    whole = run_batch([request({"input": ["a", "b"]})])
    arguments = (
        "run-batch",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--dry-run",
        "--quiet",
        "--device",
        "cpu",
    )
    assert main([*arguments]) == 0
    assert capfd.readouterr().out == "in.jsonl: 1 request, 2 texts, 4 tokens, 0 with an error\n"
    assert main([*arguments, "--truncate"]) == 2
    assert "out.jsonl: was begun with another --truncate" in capfd.readouterr().err
    assert Path("out.jsonl").read_bytes().splitlines(keepends=True) == whole


def test_dry_run_without_stdout(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    write_lines([request(BODY)])
    monkeypatch.setattr("sys.stdout", None)
    assert main(["run-batch", "-i", "in.jsonl", "--dry-run", "--quiet", "--device", "cpu"]) == 2
    assert "stdout: is closed" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-i", "in.jsonl"), "-o: missing"),
        (("-i", "none.jsonl", "-o", "out.jsonl"), "none.jsonl: cannot be read"),
        (("-i", "in.jsonl", "-o", "in.jsonl"), "in.jsonl: would be overwritten"),
        (("-i", "in.jsonl", "-o", "out.npy"), "out.npy: has the extension of another format"),
        (("-i", "in.jsonl", "-o", "no/out.jsonl"), "no: no such folder"),
    ],
)
def test_wrong_arguments(
    capfd: pytest.CaptureFixture, arguments: tuple[str, ...], message: str
) -> None:
    Path("in.jsonl").write_text("")
    assert main(["run-batch", *arguments, "--quiet"]) == 2
    assert message in capfd.readouterr().err
