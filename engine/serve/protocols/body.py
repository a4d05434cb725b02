"""What all protocols do with the body of a request: parse it as JSON, check its fields, refuse unknown fields."""

import re
from collections import Counter
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lastword.errors import InputError, list_some, one_line
from lastword.serve.errors import bad_request
from lastword.weights import parse_json

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
# The vectors of an answer: a NumPy array, written as a list of lists.
Vectors = Annotated[
    Any,
    WithJsonSchema({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
]
_MANY_KEYS = 64
_ESCAPED = re.compile(rb"\\u00[2-7]")  # an escaped ASCII character, perhaps in a key
Given = TypeVar("Given", bound="Body")


def _refuse_true(value: bool) -> bool:  # noqa: FBT001  a validator
    if value:
        raise PydanticCustomError("literal_error", "Input should be false")
    return value


# A boolean that may only be false. Literal[False] would accept 0 too.
OnlyFalse = Annotated[
    bool, AfterValidator(_refuse_true), WithJsonSchema({"type": "boolean", "const": False})
]


def _allow_null(schema: dict[str, Any]) -> None:
    """Allow null in the JSON schema of a body: for each field that may be left out, and for unknown fields."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        if name not in required and {"type": "null"} not in field.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}
    schema["additionalProperties"] = {"type": "null"}


class Body(BaseModel):
    """The body of a request; a field that is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_allow_null)

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
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            body.decode()
        except UnicodeDecodeError as wrong:
            what = f"not UTF-8 at byte {wrong.start}"
        else:
            what = f"not valid JSON ({error})" if body else "empty"
        raise bad_request(f"body: {what}.", code="invalid_json") from None
    if _may_repeat(body, value):
        try:
            parse_json(body, "body", InputError)
        except InputError as error:
            raise bad_request(str(error), code="invalid_json") from None
    return value


def _may_repeat(body: bytes, value: object) -> bool:
    """Return whether a key may occur twice in one object; orjson would keep the second value without an error.

    Fast, and True without need only seldom: each key is counted in the bytes of the whole body, where a text may equal
    a key. With many keys or an escaped character, the answer is True without counting. Lists, which may be long, are
    looked through only if the body has more than one object.
    """
    keys, waiting = Counter[str](), [value]
    nested = isinstance(value, list) or body.count(b"{") > 1
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            keys.update(each.keys())  # given the dict itself, a Counter would add the values
            waiting += [inner for inner in each.values() if isinstance(inner, dict | list)]
        elif nested and isinstance(each, list):
            waiting += [inner for inner in each if isinstance(inner, dict | list)]
    if not keys:
        return False
    if len(keys) > _MANY_KEYS or _ESCAPED.search(body) is not None:
        return True
    return any(body.count(f'"{key}"'.encode()) > times for key, times in keys.items())


def validate(kind: type[Given], value: object) -> Given:
    """Check the fields of a body; raise ServeError for the first unknown field, or else for the first wrong one."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
    unknown = [each for each in found if each["type"] == "extra_forbidden"]
    first = (unknown or found)[0]
    missing = [each["loc"][-1] for each in found if each["type"] == "missing"]
    place = ".".join(one_line(str(part), 60) for part in first["loc"]) or "body"
    said = first["msg"]
    if unknown:
        said = f"unknown field; {list_some(missing)} missing" if missing else "unknown field"
    raise bad_request(f"{place}: {said[0].lower()}{said[1:]}.", place, first["type"])


def value_of_either(body: Body, first: str, second: str) -> Any:
    """Return the value of a field that has two names; raise ServeError if both are given and differ."""
    found = [each for each in (getattr(body, first), getattr(body, second)) if each is not None]
    if len(found) == 2 and found[0] != found[1]:
        raise bad_request(f"{first}: given twice, also as {second}, with another value.", first)
    return found[0] if found else None
