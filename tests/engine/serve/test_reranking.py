"""A reranker beside the embedding model: scores of `Reranker.rank`, each protocol's bodies, answers and errors."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from helpers.serving.servers import running, until
from helpers.small_models import make_reranker

from lastword import Embedder, Reranker
from lastword.cli.main import main
from lastword.serve.settings import Limits, Settings

QUERY = "the cat"
TEXTS = ["no no", "the cat yes", "", "zwölf Boxkämpfer 🥊", "yes"]
LONG = "word " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_reranker(tmp_path_factory.mktemp("serve") / "small-reranker")


@pytest.fixture(scope="module")
def reranker(folder):
    return Reranker(folder, device="cpu")


def load_embedder():
    return Embedder(device="cpu")


def serving(folder, settings=None, **options):
    def load():
        return Reranker(folder, device="cpu", **options)

    return running(load_embedder, settings or Settings(port=0), load_reranker=load)


@pytest.fixture(scope="module")
def both(folder):
    with serving(folder) as found:
        yield found


@pytest.fixture(scope="module")
def short(folder, reranker):
    """A server whose reranker has room for QUERY and about twenty tokens of a document."""
    room = len(reranker.token_ids([(QUERY, "")])[0]) + 20
    with serving(folder, max_length=room) as found:
        found.room = room
        yield found


def check(found, expected):
    """Compare (index, score) pairs with what `rank` returns."""
    assert [place for place, _ in found] == [each["corpus_id"] for each in expected]
    np.testing.assert_allclose([s for _, s in found], [e["score"] for e in expected], atol=1e-5)


@pytest.mark.parametrize("path", ["/rerank", "/"])
def test_as_of_tei(both, reranker, path):
    answer = both.post(path, {"query": QUERY, "texts": TEXTS}).json()
    assert all(set(each) == {"index", "score"} for each in answer)
    check([(each["index"], each["score"]) for each in answer], reranker.rank(QUERY, TEXTS))
    told = both.post(
        path, {"query": QUERY, "texts": TEXTS, "return_text": True, "raw_scores": True}
    ).json()
    assert all(each["text"] == TEXTS[each["index"]] for each in told)
    raw = reranker.rank(QUERY, TEXTS, activation_fn=lambda scores: scores)
    check([(each["index"], each["score"]) for each in told], raw)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/", "/v2/rerank"])
def test_as_of_the_others(both, reranker, path):
    body = {"model": "small-reranker", "query": QUERY, "documents": TEXTS, "top_n": 2}
    answer = both.post(path, body).json()
    assert answer["id"]
    found = [(each["index"], each["relevance_score"]) for each in answer["results"]]
    check(found, reranker.rank(QUERY, TEXTS, 2))
    documents = [each.get("document") for each in answer["results"]]
    texts = [{"text": TEXTS[place]} for place, _ in found]
    assert documents == ([None, None] if path == "/v2/rerank" else texts)
    opposite = {**body, "return_documents": path == "/v2/rerank", "top_n": 0}
    documents = [each.get("document") for each in both.post(path, opposite).json()["results"]]
    assert len(documents) == len(TEXTS)
    assert (None in documents) is (path != "/v2/rerank")


def test_what_the_answer_tells(both, reranker):
    body = {"query": QUERY, "documents": [TEXTS[0], {"text": TEXTS[1]}], "use_activation": False}
    response = both.post("/v1/rerank", body)
    answer = response.json()
    raw = reranker.rank(QUERY, TEXTS[:2], activation_fn=lambda scores: scores)
    check([(each["index"], each["relevance_score"]) for each in answer["results"]], raw)
    ids = reranker.token_ids([(QUERY, each) for each in TEXTS[:2]])
    tokens = sum(map(len, ids))
    assert answer["model"] == "small-reranker"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == tokens
    assert usage["computed_tokens"] < tokens  # the documents share what is before them
    assert (usage["truncated_inputs"], response.headers["x-lastword-truncated"]) == (0, "0")
    assert response.headers["x-lastword-tokens"] == str(tokens)
    assert "x-lastword-space" not in response.headers
    cohere = both.post("/v2/rerank", {"query": QUERY, "documents": TEXTS[:2]}).json()
    assert cohere["meta"]["tokens"] == {"input_tokens": tokens}
    assert cohere["meta"]["billed_units"]["search_units"] == 1


@pytest.mark.parametrize("name", ["instruction", "instruct"])
@pytest.mark.parametrize(
    ("path", "field", "score"),
    [("/rerank", "texts", "score"), ("/v1/rerank", "documents", "relevance_score")],
)
def test_instructions(both, reranker, name, path, field, score):
    asked = "Find what contradicts it"
    answer = both.post(path, {"query": QUERY, field: TEXTS, name: asked}).json()
    listed = answer if path == "/rerank" else answer["results"]
    expected = reranker.rank(QUERY, TEXTS, instruction=asked)
    assert expected != reranker.rank(QUERY, TEXTS)
    check([(each["index"], each[score]) for each in listed], expected)


QUERIES = ("queries", "text_1", "data_1")
DOCUMENTS = ("documents", "items", "text_2", "data_2")


@pytest.mark.parametrize(
    ("first", "second"), [(q, d) for q in QUERIES for d in DOCUMENTS if q != d]
)
def test_score(both, reranker, first, second):
    answer = both.post("/score", {first: QUERY, second: TEXTS, "instruction": "a"}).json()
    assert answer["object"] == "list"
    assert [each["index"] for each in answer["data"]] == list(range(len(TEXTS)))
    expected = reranker.predict([(QUERY, each) for each in TEXTS], instruction="a").numpy()
    np.testing.assert_allclose([e["score"] for e in answer["data"]], expected, atol=1e-5)


def test_score_of_a_query_for_each(both, reranker):
    pairs = list(zip(TEXTS[::-1], TEXTS, strict=True))
    body = {"queries": TEXTS[::-1], "documents": TEXTS, "use_activation": False}
    found = [each["score"] for each in both.post("/score", body).json()["data"]]
    expected = reranker.predict(pairs, activation_fn=lambda scores: scores).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    one = both.post("/score", {"text_1": "a", "text_2": "b"}).json()["data"]
    assert [each["index"] for each in one] == [0]


TEI, OPENAI, COHERE = "tei", "openai", "cohere"
SHORT = {"query": "a", "documents": ["b"]}
REFUSED = [
    ("/rerank", {"query": "a", "texts": []}, 400, TEI, "texts: empty"),
    ("/rerank", {"query": "a"}, 422, TEI, "texts: field required"),
    ("/rerank", {"query": "a", "texts": ["b"], "top_n": 1}, 422, TEI, "top_n: unknown field"),
    ("/", {"query": "a", "texts": ["b"], "model": "m"}, 422, TEI, "model: unknown field"),
    (
        "/rerank",
        {"query": "a", "texts": ["b"], "truncation_direction": "Left"},
        422,
        TEI,
        "truncation_direction",
    ),
    (
        "/rerank",
        {"query": "a", "texts": ["b"], "instruct": "c", "instruction": "d"},
        422,
        TEI,
        "given twice",
    ),
    ("/rerank", {**SHORT, "rank_fields": ["x"]}, 400, OPENAI, "rank_fields: unknown field"),
    ("/", {**SHORT, "priority": 1}, 400, OPENAI, "priority: unknown field"),
    ("/v1/rerank", {**SHORT, "documents": []}, 400, OPENAI, "documents: empty"),
    ("/v1/rerank", {**SHORT, "documents": "b"}, 400, OPENAI, "documents"),
    ("/v1/rerank", {**SHORT, "documents": [{"title": "b"}]}, 400, OPENAI, "documents.0"),
    ("/v1/rerank", {**SHORT, "model": "lastword-builtin-embedding"}, 404, OPENAI, "small-reranker"),
    ("/v1/rerank", {**SHORT, "top_n": -1}, 400, OPENAI, "top_n"),
    (
        "/v1/rerank",
        {**SHORT, "truncate_prompt_tokens": 9},
        400,
        OPENAI,
        "leaves no room for a document",
    ),
    (
        "/v1/rerank",
        {**SHORT, "truncate_prompt_tokens": 200, "truncate": False},
        400,
        OPENAI,
        "contradicts",
    ),
    ("/v2/rerank", {**SHORT, "texts": ["b"]}, 400, COHERE, "texts: unknown field"),
    ("/v2/rerank", {"query": "a"}, 400, COHERE, "documents: field required"),
    ("/score", {"queries": "a"}, 400, OPENAI, "documents: got none"),
    ("/score", {"queries": "a", "text_1": "a", "documents": "b"}, 400, OPENAI, "queries: got"),
    ("/score", {"queries": ["a", "b"], "items": ["c"] * 3}, 400, OPENAI, "3 for 2 queries"),
    ("/score", {"queries": "a", "items": []}, 400, OPENAI, "items: empty"),
    ("/v1/embeddings", {"input": "a", "model": "small-reranker"}, 404, OPENAI, "not served here"),
]


@pytest.mark.parametrize(("path", "body", "status", "shape", "said"), REFUSED)
def test_refused(both, path, body, status, shape, said):
    response = both.post(path, body)
    answer = response.json()
    assert response.status_code == status, answer
    if shape == TEI:
        assert set(answer) == {"error", "error_type"}
        message = answer["error"]
    elif shape == OPENAI:
        message = answer["error"]["message"]
    else:
        assert set(answer) == {"message"}
        message = answer["message"]
    assert said in message


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/score"])
def test_without_a_reranker(server, path):
    response = server.post(path, {"query": "a", "texts": ["b"]})
    assert response.status_code in (400, 422)
    assert f"{path}: this server has no reranker; start it with --reranker" in response.text
    assert server.get("/info").json()["reranker"] is None


def test_long_documents(short, reranker):
    texts = ["a", LONG]
    refused = short.post("/v1/rerank", {"query": QUERY, "documents": texts})
    assert refused.status_code == 413
    error = refused.json()["error"]
    assert error["message"].startswith("documents 1: too long; got ")
    assert f"at most {short.room}" in error["message"]
    assert error["code"] == "context_length_exceeded"
    expected = Reranker(
        reranker.info.files.folder, device="cpu", max_length=short.room
    ).rank(QUERY, texts)  # fmt: skip
    response = short.post("/v1/rerank", {"query": QUERY, "documents": texts, "truncate": True})
    answer = response.json()
    check([(each["index"], each["relevance_score"]) for each in answer["results"]], expected)
    assert answer["usage"]["truncated_inputs"] == 1
    assert response.headers["x-lastword-truncated-inputs"] == "1"
    tei = short.post("/rerank", {"query": QUERY, "texts": texts, "truncate": True})
    check([(each["index"], each["score"]) for each in tei.json()], expected)
    for most in (-1, short.room):
        body = {"queries": QUERY, "documents": texts, "truncate_prompt_tokens": most}
        assert short.post("/score", body).json()["usage"]["truncated_inputs"] == 1
    leaves = short.post("/rerank", {"query": LONG, "texts": ["a"], "truncate": True})
    assert leaves.status_code == 422
    assert "its query: leaves no room for a document" in leaves.json()["error"]


def test_tokens_of_a_document(both, reranker):
    kept = "yes no yes"
    most = len(reranker.info.tokenizer.spans(kept))
    body = {"query": QUERY, "documents": [f"{kept} no no", "yes"], "max_tokens_per_doc": most}
    answer = both.post("/v2/rerank", body).json()
    assert answer["meta"]["warnings"] == ["truncated documents: 0"]
    scores = {each["index"]: each["relevance_score"] for each in answer["results"]}
    expected = reranker.predict([(QUERY, kept), (QUERY, "yes")]).tolist()
    np.testing.assert_allclose([scores[0], scores[1]], expected, atol=1e-5)


def test_limits(folder):
    limits = Limits(max_inputs=2, max_characters=50, max_request_tokens=150)
    with serving(folder, Settings(port=0, limits=limits)) as found:
        for documents, said in (
            (["a"] * 3, "documents: too many; got 3"),
            (["a" * 51], "documents 0: too long; got 51 characters"),
            (["a b c d e f"] * 2, "documents: too many tokens in one request"),
        ):
            response = found.post("/v1/rerank", {"query": "a", "documents": documents})
            assert response.status_code == 413, response.text
            assert said in response.json()["error"]["message"]
        response = found.post("/rerank", {"query": "a" * 51, "texts": ["b"]})
        assert "query 0: too long" in response.json()["error"]


def test_both_are_listed(both, reranker):
    listed = both.get("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["lastword-builtin-embedding", "small-reranker"]
    assert both.get("/v1/models/small-reranker").json() == listed[1]
    assert both.get("/v1/models/other").status_code == 404
    told = both.get("/info").json()["reranker"]
    assert told["model_id"] == "small-reranker"
    assert told["max_input_length"] == reranker.max_length
    assert told["instruction"] == reranker.info.resolve_instruction({})


def test_openapi_describes_the_bodies(both):
    document = both.get("/openapi.json").json()
    content = document["paths"]["/rerank"]["post"]["requestBody"]["content"]["application/json"]
    names = {each["$ref"].rpartition("/")[2] for each in content["schema"]["anyOf"]}
    assert names == {"TeiRerankBody", "RerankBody"}
    assert names <= set(document["components"]["schemas"])
    assert "$defs" not in json.dumps(document)


def test_metrics_count_both(folder):
    with serving(folder) as found:
        before = found.get("/metrics").text
        found.post("/rerank", {"query": QUERY, "texts": TEXTS})
        found.post("/embed", {"inputs": "a"})
        after = found.get("/metrics").text

    def value(page, name):
        return next(float(x.split()[1]) for x in page.splitlines() if x.startswith(f"{name} "))

    for end in ("count", "success"):
        assert value(after, f"te_embed_{end}") == 1
        assert value(after, f"te_predict_{end}") == len(TEXTS)
    assert value(after, "lastword_batches") == value(before, "lastword_batches") + 2
    assert value(after, "te_batch_next_size_count") == 2
    assert value(after, "te_batch_next_size_sum") == len(TEXTS) + 1


class Held:
    """A runner that computes with another one once it is let go."""

    def __init__(self, runner):
        self._runner, self.go, self.taken = runner, threading.Event(), threading.Event()
        self.go.set()

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def start(self, task, forest):
        self.taken.set()
        self.go.wait(60)
        return self._runner.start(task, forest)


def test_a_full_queue_of_one_model_leaves_the_other_free(folder, reranker):
    held = Held(reranker.loop.runner)
    held.close = lambda: None  # the model is other tests' too
    limits = Limits(max_queued_tokens=100)
    with serving(folder, Settings(port=0, limits=limits), runner=held) as found:
        held.go.clear()
        held.taken.clear()
        answers = []

        def ask(query):
            answers.append(found.post("/rerank", {"query": query, "texts": TEXTS}))

        threads = [threading.Thread(target=ask, args=(query,)) for query in ("a", "b", "c", "d")]
        threads[0].start()
        held.taken.wait(60)  # the others wait behind its batch
        for thread in threads[1:]:
            thread.start()
        until(lambda: found.service.reranking.waiting.tokens >= limits.max_queued_tokens)
        for path in ("/rerank", "/"):
            refused = found.post(path, {"query": "e", "texts": ["f"]})
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
        assert found.post("/embed", {"inputs": "a"}).status_code == 200
        held.go.set()
        for thread in threads:
            thread.join(60)
        assert {each.status_code for each in answers} <= {200, 429}
        assert 200 in {each.status_code for each in answers}


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "lastword.cli.main", "serve", "--device", "cpu", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command(folder):
    with command("--port", "0", "--reranker", str(folder)) as process:
        lines = iter(process.stderr.readline, "")
        url = next(line for line in lines if "listening" in line).split("url=")[1].strip()
        assert "reranker=small-reranker" in next(line for line in lines if "ready" in line)
        answer = httpx.post(f"{url}/rerank", json={"query": QUERY, "texts": TEXTS}, timeout=60)
        assert len(answer.json()) == len(TEXTS)
        process.terminate()
        assert process.wait(60) == 0


def test_the_command_refuses_what_is_no_reranker(tmp_path):
    with command("--port", "0", "--reranker", str(tmp_path)) as process:
        _, log = process.communicate(timeout=120)
    assert process.returncode == 2, log
    assert str(tmp_path) in log.splitlines()[-1]
    assert "Traceback" not in log


# A reranker alone, given as MODEL.


@pytest.fixture(scope="module")
def alone(folder):
    with running(lambda: Reranker(folder, device="cpu")) as found:
        yield found


def test_alone_it_scores(alone, reranker):
    expected = reranker.rank(QUERY, TEXTS)
    for path in ("/rerank", "/"):
        answer = alone.post(path, {"query": QUERY, "texts": TEXTS}).json()
        check([(each["index"], each["score"]) for each in answer], expected)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/"):
        body = {"model": "small-reranker", "query": QUERY, "documents": TEXTS}
        results = alone.post(path, body).json()["results"]
        check([(each["index"], each["relevance_score"]) for each in results], expected)
    data = alone.post("/score", {"queries": QUERY, "documents": TEXTS}).json()["data"]
    scores = {each["corpus_id"]: each["score"] for each in expected}
    assert {each["index"]: each["score"] for each in data} == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/v1/embeddings", {"input": "a"}, OPENAI),
        ("/embed", {"inputs": "a"}, TEI),
        ("/", {"inputs": "a"}, TEI),
        ("/", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, TEI),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, TEI),
        ("/tokenize", {"inputs": "a"}, TEI),
        ("/decode", {"ids": [1]}, TEI),
        ("/embed_all", {"inputs": "a"}, TEI),
        ("/predict", {"inputs": "a"}, TEI),
        ("/v2/embed", {"texts": ["a"]}, COHERE),
        ("/api/embed", {"input": "a"}, "ollama"),
    ],
)
def test_alone_it_refuses_other_routes_by_name(alone, path, body, shape):
    response = alone.post(path, body)
    answer = response.json()
    assert response.status_code == (422 if shape == TEI else 400)
    if shape == OPENAI:
        assert answer["error"]["code"] == "not_supported"
        said = answer["error"]["message"]
    elif shape == TEI:
        assert set(answer) == {"error", "error_type"}
        said = answer["error"]
    else:
        (said,) = answer.values()
    if path == "/":  # it stands for other routes, by the shape of the body
        path = "/embed" if body["inputs"] == "a" else "/similarity"
    assert said.startswith(
        f"{path}: this server has only a reranker, which scores documents at /rerank"
    )


def test_alone_it_is_described(alone, reranker):
    assert alone.get("/health").status_code == 200
    info = alone.get("/info").json()
    assert info["model_id"] == info["served_model_name"] == "small-reranker"
    assert set(info["model_type"]) == {"reranker"}
    assert set(info["model_type"]["reranker"]) == {"id2label", "label2id"}
    assert (info["dim"], info["space"]) == (None, None)
    assert info["max_input_length"] == reranker.max_length
    assert info["reranker"]["instruction"] == reranker.info.resolve_instruction({})
    (listed,) = alone.get("/v1/models").json()["data"]
    assert listed["id"] == "small-reranker"
    assert alone.get("/v1/models/small-reranker").json() == listed
    assert alone.get("/v1/models/other").status_code == 404
    assert alone.get("/api/tags").json() == {"models": []}
    asked = {"query": "a", "documents": ["b"], "model": "other"}
    assert "small-reranker" in alone.post("/v1/rerank", asked).json()["error"]["message"]
    before = alone.service.metrics.done["predict"]
    alone.post("/rerank", {"query": QUERY, "texts": TEXTS})
    done = alone.service.metrics.done
    assert (done["predict"], done["embed"]) == (before + len(TEXTS), 0)
    assert "te_batch_next_size_bucket" in alone.get("/metrics").text


def test_while_it_loads_no_kind_is_refused(folder):
    go = threading.Event()

    def load():
        go.wait(60)
        return Reranker(folder, device="cpu")

    with running(load, wait=False) as found:
        for path, body in (
            ("/rerank", {"query": "a", "texts": ["b"]}),
            ("/embed", {"inputs": "a"}),
        ):
            refused = found.post(path, body)
            assert (refused.status_code, refused.json()["error_type"]) == (503, "Unhealthy")
        go.set()
        until(lambda: found.get("/health").status_code == 200)
        assert found.post("/rerank", {"query": "a", "texts": ["b"]}).status_code == 200


def test_the_command_serves_it_alone(folder):
    with command("--port", "0", str(folder), "--model-name", "mine") as process:
        lines = iter(process.stderr.readline, "")
        url = next(line for line in lines if "listening" in line).split("url=")[1].strip()
        assert next(line for line in lines if "ready" in line).endswith("ready reranker=mine\n")
        asked = {"query": QUERY, "documents": TEXTS, "model": "mine"}
        answer = httpx.post(f"{url}/v1/rerank", json=asked, timeout=60).json()
        assert (answer["model"], len(answer["results"])) == ("mine", len(TEXTS))
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--reranker", "FOLDER"], "--reranker: MODEL is a reranker too; got "),
        (["--dim", "8"], "--dim: is for embedding models only; got 8"),
        (["--accept-token-ids"], "--accept-token-ids: is for embedding models only"),
        (["--ranges", "x"], "--ranges: is for embedding models only; got x"),
    ],
)
def test_what_needs_an_embedding_model_is_refused(folder, options, said, capfd):
    options = [str(folder) if each == "FOLDER" else each for each in options]
    assert main(["serve", "--dry-run", "--device", "cpu", str(folder), *options]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"lastword: {said}")


def test_dry_run_alone(folder, reranker, capfd):
    assert main(["serve", "--dry-run", "--device", "cpu", str(folder)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert (lines["model"], lines["kind"]) == (str(folder), "reranker")
    assert lines["weights"] == f"{reranker.info.weights_bytes:,} bytes in float32"


def test_dry_run(folder, reranker, capfd):
    assert main(["serve", "--dry-run", "--device", "cpu", "--reranker", str(folder)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert lines["reranker"] == str(folder)
    assert lines["reranker_weights"] == f"{reranker.info.weights_bytes:,} bytes in float32"


def test_cohere_client(both, reranker):
    cohere = pytest.importorskip("cohere")
    with httpx.Client(trust_env=False) as http:
        client = cohere.ClientV2(api_key="none", base_url=both.url, httpx_client=http)
        answer = client.rerank(model="small-reranker", query=QUERY, documents=TEXTS, top_n=3)
        found = [(each.index, each.relevance_score) for each in answer.results]
        check(found, reranker.rank(QUERY, TEXTS, 3))
        with pytest.raises(cohere.errors.NotFoundError, match="is not served here"):
            client.rerank(model="rerank-v4.0", query=QUERY, documents=TEXTS)


def test_many_clients_at_once_get_their_own_scores_and_vectors(both, reranker):
    queries = [f"query {number} of the cat" for number in range(12)]
    texts = [f"text {number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        scores = pool.map(lambda q: both.post("/rerank", {"query": q, "texts": TEXTS}), queries)
        vectors = pool.map(lambda text: both.post("/embed", {"inputs": text}), texts)
        answers, rows = list(scores), [row.json()[0] for row in vectors]
    for query, answer in zip(queries, answers, strict=True):
        found = {each["index"]: each["score"] for each in answer.json()}
        expected = {each["corpus_id"]: each["score"] for each in reranker.rank(query, TEXTS)}
        assert found == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(rows, load_embedder().encode(texts).numpy(), atol=1e-5)
