"""The protocol of text-embeddings-inference (TEI): vectors, similarity, tokens. `/rerank` is in `rerank.py`."""

from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema
from typing_extensions import TypedDict

from lastword.embedder import Embedder
from lastword.serve.answers import Answer
from lastword.serve.errors import bad_request
from lastword.serve.protocols.body import Body, Dim, Inputs, Vectors
from lastword.serve.protocols.rerank import rerank_path
from lastword.serve.texts import EmbedCall, as_inputs

Side = Literal["left", "right", "Left", "Right"]

# Routes of TEI that an embedding model with one dense vector per text cannot answer.
REFUSED = {
    "/embed_all": "this server computes one vector per text, not one per token; use /embed.",
    "/embed_sparse": "this server computes no sparse vectors; use /embed.",
    "/predict": "the model is not a classifier; use /embed.",
}


class EmbedBody(Body):
    """The body of `POST /embed`; huggingface_hub sends it to `POST /`."""

    inputs: Inputs
    truncate: bool | None = None
    truncation_direction: Side | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    normalize: bool = True
    dimensions: Dim | None = None
    encoding_format: Literal["float"] | None = None


class SimilarityInputs(Body):
    """The texts of `POST /similarity`."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(Body):
    """The settings of `POST /similarity`."""

    truncate: bool | None = None
    truncation_direction: Side | None = None
    prompt_name: str | None = None


class SimilarityBody(Body):
    """The body of `POST /similarity`."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters = SimilarityParameters()


class TokenizeBody(Body):
    """The body of `POST /tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeBody(Body):
    """The body of `POST /decode`."""

    ids: list[int] | list[list[int]]
    skip_special_tokens: bool = True


class Token(TypedDict):
    """A token in the answer to `POST /tokenize`; `start` and `stop` count characters, null for template tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def embed_call(body: EmbedBody) -> EmbedCall:
    """Return the call that the body asks for."""
    return EmbedCall(
        as_inputs(body.inputs, "inputs"),
        prompt_name=body.prompt_name,
        prompt=body.prompt,
        dim=body.dimensions,
        normalize=body.normalize,
        truncate=body.truncate,
        side=_side(body.truncation_direction),
        field="inputs",
    )


def embed_render(_: EmbedBody, answer: Answer) -> Vectors:
    """Return the vectors as a list of lists, even for a single text."""
    return answer.to_numpy()


def similarity_call(body: SimilarityBody) -> EmbedCall:
    """Return the call that the body asks for; its first text is the source sentence."""
    if not body.inputs.sentences:
        raise bad_request("sentences: empty; expected at least one text.", "sentences", "empty")
    settings = body.parameters
    return EmbedCall(
        [body.inputs.source_sentence, *body.inputs.sentences],
        prompt_name=settings.prompt_name,
        truncate=settings.truncate,
        side=_side(settings.truncation_direction),
        field="sentences",
    )


def similarity_render(
    _: SimilarityBody, answer: Answer
) -> Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "number"}})]:
    """Return the similarity of each sentence to the source sentence."""
    return answer.similarity(answer.vectors[:1], answer.vectors[1:])[0].numpy()


def dispatch(value: object) -> str:
    """Return the path of the route for a body sent to `/`, by its shape."""
    if not isinstance(value, dict):
        return "/embed"
    if "query" in value:
        return rerank_path(value)
    return "/similarity" if isinstance(value.get("inputs"), dict) else "/embed"


def tokenize(model: Embedder, body: TokenizeBody) -> list[list[Token]]:
    """Return the tokens of each text. `start` and `stop` are character offsets into the prompt followed by the text."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    tokenizer = model.info.tokenizer
    prompt = model.info.resolve_prompt(body.prompt_name)
    before, after = (
        [_token(i, tokenizer.token(i), special=True) for i in ids]
        for ids in (tokenizer.before, tokenizer.after)
    )
    found = []
    for text in (prompt + each for each in texts):
        inner = [
            _token(i, text[start:stop], start, stop, special=special)
            for i, special, start, stop in tokenizer.spans(text)
        ]
        found.append([*before, *inner, *after] if body.add_special_tokens else inner)
    return found


def _token(
    token_id: int, text: str, start: int | None = None, stop: int | None = None, *, special: bool
) -> Token:
    return {"id": token_id, "text": text, "special": special, "start": start, "stop": stop}


def decode(model: Embedder, body: DecodeBody) -> list[str]:
    """Return the text of each list of token ids; `ids` may also be a single list."""
    lists = [each for each in body.ids if isinstance(each, list)]
    if len(lists) < len(body.ids):
        lists = [[each for each in body.ids if isinstance(each, int)]]
    highest = max((max(ids, default=0) for ids in lists), default=0)
    lowest = min((min(ids, default=0) for ids in lists), default=0)
    if lowest < 0 or highest >= model.info.tokenizer.vocab_size:
        expected = f"0 to {model.info.tokenizer.vocab_size - 1}"
        raise bad_request(f"ids: unknown token id; expected {expected}.", "ids")
    skip = body.skip_special_tokens
    return [model.info.tokenizer.decode(ids, skip_special_tokens=skip) for ids in lists]


def _side(asked: str | None) -> Literal["left", "right"] | None:
    if asked is None:
        return None
    return "left" if asked.lower() == "left" else "right"
