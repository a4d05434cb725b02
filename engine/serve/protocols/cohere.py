"""`POST /v2/embed`, in Cohere's protocol."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired
from uuid import uuid4

from pydantic import Field
from typing_extensions import TypedDict

from lastword.serve.answers import Answer
from lastword.serve.errors import bad_request
from lastword.serve.protocols.body import Body, Dim, Vectors
from lastword.serve.texts import EmbedCall, Prepared

Kind = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
MAX_TEXTS = 96
_SIDES: dict[str, Literal["left", "right"]] = {"START": "left", "END": "right"}


class CohereEmbedBody(Body):
    """The body of `POST /v2/embed`."""

    model: str | None = None
    texts: list[str]
    input_type: str | None = None
    embedding_types: Sequence[Kind] = ("float",)
    output_dimension: Dim | None = None
    truncate: Literal["NONE", "START", "END"] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class Meta(TypedDict):
    """What a request used; the warnings name the texts that were cut."""

    api_version: dict[str, str]
    billed_units: dict[str, int]
    tokens: dict[str, int]
    warnings: NotRequired[list[str]]


class CohereEmbedAnswer(TypedDict):
    """The answer to `POST /v2/embed`."""

    id: str
    embeddings: dict[Kind, Vectors | list[str]]
    texts: list[str]
    meta: Meta
    response_type: Literal["embeddings_by_type"]


def call(body: CohereEmbedBody) -> EmbedCall:
    """Return the call that the body asks for."""
    if len(body.texts) > MAX_TEXTS:
        said = f"texts: too many; got {len(body.texts):,}, expected at most {MAX_TEXTS}."
        raise bad_request(said, "texts")
    if not body.embedding_types:
        raise bad_request("embedding_types: empty; expected at least one.", "embedding_types")
    return EmbedCall(
        body.texts,
        kind=body.input_type,
        dim=body.output_dimension,
        truncate=None if body.truncate is None else body.truncate != "NONE",
        side=_SIDES.get(body.truncate or ""),
        max_tokens=body.max_tokens,
        field="texts",
    )


def render(body: CohereEmbedBody, answer: Answer) -> CohereEmbedAnswer:
    """Return the answer, with the vectors in each type that was asked for."""
    kinds = dict.fromkeys(body.embedding_types)
    return {
        "id": f"embd-{uuid4().hex}",
        "embeddings": {kind: _numbers(kind, answer) for kind in kinds},
        "texts": body.texts,
        "meta": meta(answer.prepared, "texts"),
        "response_type": "embeddings_by_type",
    }


def meta(prepared: Prepared, what: str, **billed: int) -> Meta:
    """Return what a request used.

    Args:
        prepared: the request's texts or pairs.
        what: the protocol's name for the inputs, for the warning about those that were cut.
        billed: the billed units other than tokens, by name.
    """
    tokens = {"input_tokens": prepared.tokens}
    made: Meta = {
        "api_version": {"version": "2"},
        "billed_units": {**tokens, **billed},
        "tokens": tokens,
    }
    if prepared.cut_places:
        made["warnings"] = [f"truncated {what}: {', '.join(map(str, prepared.cut_places))}"]
    return made


def _numbers(kind: str, answer: Answer) -> Any:
    if kind == "base64":
        return answer.to_base64()
    return answer.to_numpy("float32" if kind == "float" else kind)
