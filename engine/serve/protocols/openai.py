"""OpenAI's protocol, `POST /v1/embeddings` and `GET /v1/models`, with the fields that Jina and Voyage add."""

from collections.abc import Iterable
from typing import Any, Literal

from lastword.serve.answers import Answer
from lastword.serve.errors import bad_request
from lastword.serve.protocols.body import Body, Dim, Inputs, value_of_either
from lastword.serve.texts import EmbedCall, as_inputs

Element = Literal["float", "int8", "uint8", "binary", "ubinary"]


class EmbeddingsBody(Body):
    """The body of `POST /v1/embeddings`; Jina's and Voyage's names for a field are accepted too."""

    input: Inputs
    model: str | None = None
    dimensions: Dim | None = None
    output_dimension: Dim | None = None
    encoding_format: Literal["float", "base64", "int8", "uint8", "binary", "ubinary"] | None = None
    embedding_type: Literal["float", "base64", "int8", "uint8", "binary", "ubinary"] | None = None
    output_dtype: Element | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    task: str | None = None
    input_type: str | None = None
    truncate: bool | None = None
    truncation: bool | None = None
    normalized: bool | None = None
    late_chunking: Literal[False] | None = None
    user: str | None = None


def call(body: EmbeddingsBody) -> EmbedCall:
    """Return the call that the body asks for."""
    dim = value_of_either(body, "dimensions", "output_dimension")
    _encoding(body)
    return EmbedCall(
        as_inputs(body.input, "input"),
        prompt_name=body.prompt_name,
        prompt=body.prompt,
        kind=value_of_either(body, "input_type", "task"),
        dim=dim,
        normalize=body.normalized is True,
        refuse_unnormalized=body.normalized is False,
        truncate=value_of_either(body, "truncate", "truncation"),
    )


def render(body: EmbeddingsBody, answer: Answer) -> dict[str, Any]:
    """Return the answer."""
    precision, packed = _encoding(body)
    vectors = answer.to_base64(precision) if packed else answer.to_numpy(precision)
    tokens = answer.prepared.tokens
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector, "truncated": cut}
            for index, (vector, cut) in enumerate(zip(vectors, answer.prepared.cut, strict=True))
        ],
        "model": answer.model,
        "space": answer.space,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "computed_tokens": answer.computed,
            "truncated_inputs": len(answer.prepared.cut_places),
            "unknown_inputs": answer.prepared.unknown,
        },
    }


def list_models(names: Iterable[str], created: int) -> dict[str, Any]:
    """Return the answer to `GET /v1/models`."""
    return {"object": "list", "data": [describe_model(name, created) for name in names]}


def describe_model(name: str, created: int) -> dict[str, Any]:
    """Return the answer to `GET /v1/models/{id}`."""
    return {"id": name, "object": "model", "created": created, "owned_by": "lastword"}


def _encoding(body: EmbeddingsBody) -> tuple[str, bool]:
    """Return the precision of the vectors, and whether they are written in base64."""
    asked = [body.encoding_format, body.embedding_type, body.output_dtype]
    kinds = {str(each) for each in asked} - {"None", "float", "base64"}
    if len(kinds) > 1:
        raise bad_request(
            "encoding_format: two different number formats are asked for.", "encoding_format"
        )
    return kinds.pop() if kinds else "float32", "base64" in asked
