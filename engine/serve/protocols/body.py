"""What the bodies of all protocols have in common: they are JSON, their fields are checked, unknown fields refused."""

from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from lastword.errors import one_line
from lastword.serve.errors import bad_request

_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_KINDS = [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}, _IDS]
# Texts or token ids. `texts.as_inputs` checks them; its messages are clearer than those for a union of types.
Inputs = Annotated[
    Any,
    WithJsonSchema({"anyOf": [*_KINDS, {"type": "array", "items": _IDS, "minItems": 1}]}),
]
Dim = Annotated[int, Field(ge=1)]
Top = Annotated[int, Field(ge=0)]  # 0 means all, as in vLLM
PairTokens = Annotated[int, Field(ge=-1)]  # -1 means the reranker's own limit, as in vLLM
Given = TypeVar("Given", bound="Body")


class Body(BaseModel):
    """The body of a request; a field that is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, value: Any) -> Any:
        """Remove the fields that are null."""
        if not isinstance(value, dict):
            return value
        return {name: each for name, each in value.items() if each is not None}


def read_json(body: bytes) -> object:
    """Parse JSON; raise ServeError if it is not valid."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            body.decode()
        except UnicodeDecodeError as wrong:
            what = f"not UTF-8 at byte {wrong.start}"
        else:
            what = f"not valid JSON ({error})" if body else "empty"
        raise bad_request(f"body: {what}.", code="invalid_json") from None


def validate(kind: type[Given], value: object) -> Given:
    """Check the fields of a body; raise ServeError for the first that is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(one_line(str(part), 60) for part in first["loc"]) or "body"
    said = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
    raise bad_request(f"{place}: {said[0].lower()}{said[1:]}.", place, first["type"])


def value_of_either(body: Body, first: str, second: str) -> Any:
    """Return the value of a field that has two names; raise ServeError if both are given and differ."""
    found = [each for each in (getattr(body, first), getattr(body, second)) if each is not None]
    if len(found) == 2 and found[0] != found[1]:
        raise bad_request(f"{first}: given twice, also as {second}, with another value.", first)
    return found[0] if found else None
