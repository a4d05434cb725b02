"""Scores of documents: `/rerank` of text-embeddings-inference (TEI), Jina, vLLM and Cohere; `/score` of vLLM."""

from collections.abc import Sequence
from time import time
from typing import Any, Literal, NotRequired
from uuid import uuid4

from typing_extensions import TypedDict

from lastword.serve.errors import bad_request
from lastword.serve.pairs import RerankCall, Scores
from lastword.serve.protocols.body import Body, Dim, PairTokens, Top, value_of_either
from lastword.serve.protocols.cohere import Meta, meta
from lastword.serve.protocols.openai import Usage, usage

Texts = str | list[str]


class TeiRerankBody(Body):
    """The body of `POST /rerank` in TEI's protocol; the documents are in `texts`."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    raw_scores: bool = False
    return_text: bool = False
    instruction: str | None = None
    instruct: str | None = None


class Document(Body):
    """A document given as a JSON object."""

    text: str


class RerankBody(Body):
    """The body of `POST /v1/rerank` (Jina, vLLM) and `POST /v2/rerank` (Cohere); the documents are in `documents`."""

    model: str | None = None
    query: str
    documents: Sequence[str | Document]
    top_n: Top = 0
    return_documents: bool | None = None
    max_tokens_per_doc: Dim | None = None
    truncate: bool | None = None
    truncate_prompt_tokens: PairTokens | None = None
    use_activation: bool = True
    instruction: str | None = None
    instruct: str | None = None
    user: str | None = None

    def texts(self) -> list[str]:
        """Return the texts of the documents."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


class ScoreBody(Body):
    """The body of `POST /score`: one query for all documents, or one per document.

    The queries and the documents each have several names, of which exactly one is given.
    """

    model: str | None = None
    queries: Texts | None = None
    text_1: Texts | None = None
    data_1: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_2: Texts | None = None
    data_2: Texts | None = None
    truncate: bool | None = None
    truncate_prompt_tokens: PairTokens | None = None
    use_activation: bool = True
    instruction: str | None = None
    instruct: str | None = None
    user: str | None = None


class TeiRank(TypedDict):
    """A document in TEI's answer to `POST /rerank`."""

    index: int
    score: float
    text: NotRequired[str]


class Rank(TypedDict):
    """A document in the answers of Jina, vLLM and Cohere; `index` counts from 0 in the request."""

    index: int
    relevance_score: float
    document: NotRequired[dict[str, str]]


class RerankAnswer(TypedDict):
    """The answer of Jina and vLLM to `POST /v1/rerank`."""

    id: str
    model: str
    usage: Usage
    results: list[Rank]


class CohereRerankAnswer(TypedDict):
    """The answer to `POST /v2/rerank`."""

    id: str
    results: list[Rank]
    meta: Meta


class Score(TypedDict):
    """A score in the answer to `POST /score`."""

    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(TypedDict):
    """The answer to `POST /score`."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


def tei_call(body: TeiRerankBody) -> RerankCall:
    """Return the call that the body asks for."""
    return RerankCall(
        [(body.query, each) for each in body.texts],
        value_of_either(body, "instruction", "instruct"),
        body.truncate,
        field="texts",
    )


def tei_render(body: TeiRerankBody, answer: Scores) -> list[TeiRank]:
    """Return the answer: the index and the score of each document, the most relevant first."""
    found: list[TeiRank] = []
    for place, score in answer.by_relevance(raw=body.raw_scores):
        found.append({"index": place, "score": score})
        if body.return_text:
            found[-1]["text"] = body.texts[place]
    return found


def call(body: RerankBody) -> RerankCall:
    """Return the call that the body asks for."""
    return RerankCall(
        [(body.query, each) for each in body.texts()],
        value_of_either(body, "instruction", "instruct"),
        max_document_tokens=body.max_tokens_per_doc,
        **_limit(body),
    )


def render(body: RerankBody, answer: Scores) -> RerankAnswer:
    """Return the answer of Jina and vLLM, with the documents unless `return_documents` is false."""
    return {
        "id": f"rerank-{uuid4().hex}",
        "model": answer.model,
        "usage": usage(answer.prepared, answer.computed),
        "results": _results(body, answer, documents=body.return_documents is not False),
    }


def cohere_render(body: RerankBody, answer: Scores) -> CohereRerankAnswer:
    """Return Cohere's answer, with the documents only if `return_documents` is true."""
    return {
        "id": f"rerank-{uuid4().hex}",
        "results": _results(body, answer, documents=body.return_documents is True),
        "meta": meta(answer.prepared, "documents", search_units=1),
    }


def score_call(body: ScoreBody) -> RerankCall:
    """Return the call that the body asks for."""
    _, queries = _side(body, ("queries", "text_1", "data_1"))
    field, documents = _side(body, ("documents", "items", "text_2", "data_2"))
    if len(queries) == 1:
        queries *= len(documents)
    if len(queries) != len(documents):
        said = f"{field}: {len(documents):,} for {len(queries):,} queries; expected one query, or one per document."
        raise bad_request(said, field)
    return RerankCall(
        list(zip(queries, documents, strict=True)),
        value_of_either(body, "instruction", "instruct"),
        field=field,
        **_limit(body),
    )


def score_render(body: ScoreBody, answer: Scores) -> ScoreAnswer:
    """Return the answer: the scores in the order of the documents."""
    return {
        "id": f"score-{uuid4().hex}",
        "object": "list",
        "created": int(time()),
        "model": answer.model,
        "data": [
            {"index": place, "object": "score", "score": score}
            for place, score in enumerate(answer.in_order(raw=not body.use_activation))
        ],
        "usage": usage(answer.prepared, answer.computed),
    }


def rerank_path(value: object) -> str:
    """Return the path of the route for a body sent to `/rerank`; `documents` marks the protocol of Jina and vLLM."""
    return "/v1/rerank" if isinstance(value, dict) and "documents" in value else "/rerank"


def _results(body: RerankBody, answer: Scores, *, documents: bool) -> list[Rank]:
    texts, found = body.texts(), list[Rank]()
    for place, score in answer.by_relevance(body.top_n or None, raw=not body.use_activation):
        found.append({"index": place, "relevance_score": score})
        if documents:
            found[-1]["document"] = {"text": texts[place]}
    return found


def _limit(body: RerankBody | ScoreBody) -> dict[str, Any]:
    """Return the arguments of `RerankCall` that limit a pair's tokens; `truncate_prompt_tokens` implies `truncate`."""
    most = body.truncate_prompt_tokens
    if most is None:
        return {"truncate": body.truncate}
    if body.truncate is False:
        said = "truncate: false contradicts truncate_prompt_tokens; give only one of them."
        raise bad_request(said, "truncate")
    return {"truncate": True, "max_tokens": None if most == -1 else most}


def _side(body: ScoreBody, names: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return the name and the texts of the field that is given; raise ServeError unless exactly one of `names` is."""
    found = [name for name in names if getattr(body, name) is not None]
    if len(found) != 1:
        got = " and ".join(found) or "none"
        raise bad_request(f"{names[0]}: got {got}, expected one of {', '.join(names)}.", names[0])
    given = getattr(body, found[0])
    texts = [given] if isinstance(given, str) else given
    if not texts:
        raise bad_request(f"{found[0]}: empty; expected at least one text.", found[0], "empty")
    return found[0], texts
