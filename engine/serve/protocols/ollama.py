"""Ollama's protocol: `POST /api/embed`, and the two GET routes by which tools recognise an Ollama server."""

from collections.abc import Iterable
from typing import Any

from typing_extensions import TypedDict

import lastword
from lastword.serve.answers import Answer
from lastword.serve.errors import bad_request
from lastword.serve.protocols.body import Body, Dim, Vectors
from lastword.serve.texts import EmbedCall


class OllamaEmbedBody(Body):
    """The body of `POST /api/embed`; `keep_alive` and `options` are accepted and ignored."""

    model: str | None = None
    input: str | list[str]
    truncate: bool | None = None
    dimensions: Dim | None = None
    keep_alive: str | float | int | None = None
    options: dict[str, Any] | None = None


class OllamaEmbedAnswer(TypedDict):
    """The answer to `POST /api/embed`; durations are in nanoseconds."""

    model: str
    embeddings: Vectors
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaModel(TypedDict):
    """A model in the answer to `GET /api/tags`."""

    name: str
    model: str
    details: dict[str, str]


class OllamaModels(TypedDict):
    """The answer to `GET /api/tags`."""

    models: list[OllamaModel]


class OllamaVersion(TypedDict):
    """The answer to `GET /api/version`."""

    version: str


def call(body: OllamaEmbedBody) -> EmbedCall:
    """Return the `EmbedCall` that the request body asks for."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts:
        raise bad_request("input: empty; expected at least one text.", "input", "empty")
    return EmbedCall(texts, dim=body.dimensions, truncate=body.truncate)


def render(_: OllamaEmbedBody, answer: Answer) -> OllamaEmbedAnswer:
    """Return the answer."""
    return {
        "model": answer.model,
        "embeddings": answer.to_numpy(),
        "total_duration": round(answer.seconds * 1e9),
        "load_duration": 0,
        "prompt_eval_count": answer.prepared.tokens,
    }


def list_models(names: Iterable[str]) -> OllamaModels:
    """Return the answer to `GET /api/tags`; it lists embedding models only, since Ollama has no reranking."""
    details = {"format": "safetensors"}
    return {"models": [{"name": name, "model": name, "details": details} for name in names]}


def version() -> OllamaVersion:
    """Return the answer to `GET /api/version`."""
    return {"version": lastword.__version__}
