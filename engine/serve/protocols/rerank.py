"""Scores of documents: `/rerank` of text-embeddings-inference (TEI), Jina, vLLM and Cohere; `/score` of vLLM."""

from collections.abc import Sequence
from time import time
from typing import Any, Literal
from uuid import uuid4

from lastword.serve.errors import bad_request
from lastword.serve.pairs import RerankCall, Scores
from lastword.serve.protocols.body import Body, Dim, PairTokens, Top, value_of_either

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
    """A document given as an object."""

    text: str


class RerankBody(Body):
    """The body of `POST /rerank` in the protocols of Jina, vLLM and Cohere; the documents are in `documents`."""

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


def tei_call(body: TeiRerankBody) -> RerankCall:
    """Return the call that the body asks for."""
    return RerankCall(
        [(body.query, each) for each in body.texts],
        value_of_either(body, "instruction", "instruct"),
        body.truncate,
        field="texts",
    )


def tei_render(body: TeiRerankBody, answer: Scores) -> list[dict[str, Any]]:
    """Return the answer: the index and the score of each document, the most relevant first."""
    return [
        {
            "index": place,
            "score": score,
            **({"text": body.texts[place]} if body.return_text else {}),
        }
        for place, score in answer.by_relevance(raw=body.raw_scores)
    ]


def call(body: RerankBody) -> RerankCall:
    """Return the call that the body asks for."""
    return RerankCall(
        [(body.query, each) for each in body.texts()],
        value_of_either(body, "instruction", "instruct"),
        max_document_tokens=body.max_tokens_per_doc,
        **_limit(body),
    )


def render(body: RerankBody, answer: Scores) -> dict[str, Any]:
    """Return the answer of Jina and vLLM, with the documents unless `return_documents` is false."""
    return {
        "id": f"rerank-{uuid4().hex}",
        "model": answer.model,
        "usage": _usage(answer),
        "results": _results(body, answer, documents=body.return_documents is not False),
    }


def cohere_render(body: RerankBody, answer: Scores) -> dict[str, Any]:
    """Return Cohere's answer, with the documents only if `return_documents` is true."""
    tokens = {"input_tokens": answer.prepared.tokens}
    cut = answer.prepared.cut_places
    said = f"truncated documents: {', '.join(map(str, cut))}"
    return {
        "id": f"rerank-{uuid4().hex}",
        "results": _results(body, answer, documents=body.return_documents is True),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {**tokens, "search_units": 1},
            "tokens": tokens,
            **({"warnings": [said]} if cut else {}),
        },
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


def score_render(body: ScoreBody, answer: Scores) -> dict[str, Any]:
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
        "usage": _usage(answer),
    }


def rerank_path(value: object) -> str:
    """Return the path of the route for a body sent to `/rerank`; `documents` marks the protocol of Jina and vLLM."""
    return "/v1/rerank" if isinstance(value, dict) and "documents" in value else "/rerank"


def _results(body: RerankBody, answer: Scores, *, documents: bool) -> list[dict[str, Any]]:
    texts = body.texts()
    return [
        {
            "index": place,
            "relevance_score": score,
            **({"document": {"text": texts[place]}} if documents else {}),
        }
        for place, score in answer.by_relevance(body.top_n or None, raw=not body.use_activation)
    ]


def _limit(body: RerankBody | ScoreBody) -> dict[str, Any]:
    """Return the arguments of `RerankCall` that limit a pair's tokens; `truncate_prompt_tokens` implies `truncate`."""
    most = body.truncate_prompt_tokens
    if most is None:
        return {"truncate": body.truncate}
    if body.truncate is False:
        said = "truncate: false contradicts truncate_prompt_tokens; give only one of them."
        raise bad_request(said, "truncate")
    return {"truncate": True, "max_tokens": None if most == -1 else most}


def _usage(answer: Scores) -> dict[str, int]:
    tokens = answer.prepared.tokens
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "computed_tokens": answer.computed,
        "truncated_inputs": len(answer.prepared.cut_places),
        "unknown_inputs": answer.prepared.unknown,
    }


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
