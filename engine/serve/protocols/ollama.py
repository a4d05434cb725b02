"""Ollama's protocol: `POST /api/embed`, and the two GET routes by which tools recognise an Ollama server."""

from collections.abc import Iterable
from typing import Any

import lastword
from lastword.serve.answers import Answer
from lastword.serve.errors import bad_request
from lastword.serve.protocols.body import Body, Dim
from lastword.serve.texts import EmbedCall


class OllamaEmbedBody(Body):
    """The body of `POST /api/embed`; `keep_alive` and `options` are accepted and ignored."""

    model: str | None = None
    input: str | list[str]
    truncate: bool | None = None
    dimensions: Dim | None = None
    keep_alive: str | float | int | None = None
    options: dict[str, Any] | None = None


def call(body: OllamaEmbedBody) -> EmbedCall:
    """Return the call that the body asks for."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts:
        raise bad_request("input: empty; expected at least one text.", "input", "empty")
    return EmbedCall(texts, dim=body.dimensions, truncate=body.truncate)


def render(_: OllamaEmbedBody, answer: Answer) -> dict[str, Any]:
    """Return the answer; durations are in nanoseconds."""
    return {
        "model": answer.model,
        "embeddings": answer.to_numpy(),
        "total_duration": round(answer.seconds * 1e9),
        "load_duration": 0,
        "prompt_eval_count": answer.prepared.tokens,
    }


def list_models(names: Iterable[str]) -> dict[str, Any]:
    """Return the answer to `GET /api/tags`; it lists embedding models only, since Ollama has no reranking."""
    details = {"format": "safetensors"}
    return {"models": [{"name": name, "model": name, "details": details} for name in names]}


def version() -> dict[str, str]:
    """Return the answer to `GET /api/version`."""
    return {"version": lastword.__version__}
