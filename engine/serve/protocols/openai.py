"""OpenAI's protocol, `POST /v1/embeddings` and `GET /v1/models`, with the fields that Jina and Voyage add."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema
from typing_extensions import TypedDict

from lastword.serve.answers import Answer
from lastword.serve.errors import bad_request
from lastword.serve.protocols.body import Body, Dim, Inputs, OnlyFalse, value_of_either
from lastword.serve.texts import EmbedCall, Prepared, as_inputs

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
    late_chunking: OnlyFalse | None = None
    user: str | None = None


class Embedding(TypedDict):
    """One vector of an answer: numbers, or a text in base64."""

    object: Literal["embedding"]
    index: int
    embedding: Annotated[
        Any,
        WithJsonSchema(
            {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}
        ),
    ]
    truncated: bool


class Usage(TypedDict):
    """How many tokens were requested and computed, and how many inputs were cut or have unknown words."""

    prompt_tokens: int
    total_tokens: int
    computed_tokens: int
    truncated_inputs: int
    unknown_inputs: int


class EmbeddingsAnswer(TypedDict):
    """The answer to `POST /v1/embeddings`."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    space: str
    usage: Usage


class ModelCard(TypedDict):
    """The answer to `GET /v1/models/{id}`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """The answer to `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


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


def render(body: EmbeddingsBody, answer: Answer) -> EmbeddingsAnswer:
    """Return the answer."""
    precision, packed = _encoding(body)
    vectors = answer.to_base64(precision) if packed else answer.to_numpy(precision)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector, "truncated": cut}
            for index, (vector, cut) in enumerate(zip(vectors, answer.prepared.cut, strict=True))
        ],
        "model": answer.model,
        "space": answer.space,
        "usage": usage(answer.prepared, answer.computed),
    }


def usage(prepared: Prepared, computed: int) -> Usage:
    """Return the counts of a request for which `computed` tokens were computed."""
    return {
        "prompt_tokens": prepared.tokens,
        "total_tokens": prepared.tokens,
        "computed_tokens": computed,
        "truncated_inputs": len(prepared.cut_places),
        "unknown_inputs": prepared.unknown,
    }


def list_models(names: Iterable[str], created: int) -> ModelList:
    """Return the answer to `GET /v1/models`."""
    return {"object": "list", "data": [describe_model(name, created) for name in names]}


def describe_model(name: str, created: int) -> ModelCard:
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
