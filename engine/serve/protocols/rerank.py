"""Scores of documents: `/rerank` as of text-embeddings-inference, Jina, vLLM and Cohere; `/score` as of vLLM."""

from collections.abc import Sequence
from time import time
from typing import Any, Literal
from uuid import uuid4

from lastword.serve.errors import bad_request
from lastword.serve.pairs import RerankCall, Scores
from lastword.serve.protocols.body import Body, Dim, PairTokens, Top, either

Texts = str | list[str]


class TeiRerankBody(Body):
    """The body of `POST /rerank` as of text-embeddings-inference: the documents are `texts`."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    raw_scores: bool = False
    return_text: bool = False
    instruction: str | None = None
    instruct: str | None = None


class Document(Body):
    """A document as an object."""

    text: str


class RerankBody(Body):
    """The body of `POST /rerank` as of Jina, vLLM and Cohere: the documents are `documents`."""

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
        """Return the documents' texts."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


class ScoreBody(Body):
    """The body of `POST /score`: one query for all documents, or one for each."""

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
    """Return what the body asks for."""
    return RerankCall(
        [(body.query, each) for each in body.texts],
        either(body, "instruction", "instruct"),
        body.truncate,
        field="texts",
    )


def tei_render(body: TeiRerankBody, answer: Scores) -> list[dict[str, Any]]:
    """Return the documents' places and scores, the most relevant first."""
    return [
        {
            "index": place,
            "score": score,
            **({"text": body.texts[place]} if body.return_text else {}),
        }
        for place, score in answer.ranked(raw=body.raw_scores)
    ]


def call(body: RerankBody) -> RerankCall:
    """Return what the body asks for."""
    return RerankCall(
        [(body.query, each) for each in body.texts()],
        either(body, "instruction", "instruct"),
        max_document_tokens=body.max_tokens_per_doc,
        **_limit(body),
    )


def render(body: RerankBody, answer: Scores) -> dict[str, Any]:
    """Return the answer as of Jina and vLLM: with the documents, unless they are not wanted."""
    return {
        "id": f"rerank-{uuid4().hex}",
        "model": answer.model,
        "usage": _usage(answer),
        "results": _results(body, answer, documents=body.return_documents is not False),
    }


def cohere_render(body: RerankBody, answer: Scores) -> dict[str, Any]:
    """Return the answer as of Cohere: without the documents, unless they are wanted."""
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
    """Return what the body asks for."""
    _, queries = _side(body, ("queries", "text_1", "data_1"))
    field, documents = _side(body, ("documents", "items", "text_2", "data_2"))
    if len(queries) == 1:
        queries *= len(documents)
    if len(queries) != len(documents):
        said = f"{field}: {len(documents):,} for {len(queries):,} queries; expected one query, or as many as documents."
        raise bad_request(said, field)
    return RerankCall(
        list(zip(queries, documents, strict=True)),
        either(body, "instruction", "instruct"),
        field=field,
        **_limit(body),
    )


def score_render(body: ScoreBody, answer: Scores) -> dict[str, Any]:
    """Return the scores in the order of the documents."""
    return {
        "id": f"score-{uuid4().hex}",
        "object": "list",
        "created": int(time()),
        "model": answer.model,
        "data": [
            {"index": place, "object": "score", "score": score}
            for place, score in enumerate(answer.listed(raw=not body.use_activation))
        ],
        "usage": _usage(answer),
    }


def rerank_path(value: object) -> str:
    """Return whose body was sent to `/rerank`, by the documents' name, as the path whose errors and answer it gets."""
    return "/v1/rerank" if isinstance(value, dict) and "documents" in value else "/rerank"


def _results(body: RerankBody, answer: Scores, *, documents: bool) -> list[dict[str, Any]]:
    texts = body.texts()
    return [
        {
            "index": place,
            "relevance_score": score,
            **({"document": {"text": texts[place]}} if documents else {}),
        }
        for place, score in answer.ranked(body.top_n or None, raw=not body.use_activation)
    ]


def _limit(body: RerankBody | ScoreBody) -> dict[str, Any]:
    """Return the limit of each pair's tokens; `truncate_prompt_tokens` asks for documents to be cut."""
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
    """Return the queries or the documents, and the name under which they were given."""
    found = [name for name in names if getattr(body, name) is not None]
    if len(found) != 1:
        got = " and ".join(found) or "none"
        raise bad_request(f"{names[0]}: got {got}, expected one of {', '.join(names)}.", names[0])
    given = getattr(body, found[0])
    texts = [given] if isinstance(given, str) else given
    if not texts:
        raise bad_request(f"{found[0]}: empty; expected at least one text.", found[0], "empty")
    return found[0], texts
