"""The OpenAPI document: the models that check the bodies, and the return types of the functions that make answers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_type_hints

from fastapi import FastAPI
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from lastword.serve.errors import TeiError, error_form
from lastword.serve.http.routes import ROUTES, SHARED, TOKENIZER_ROUTES
from lastword.serve.protocols import ollama, openai, tei
from lastword.serve.protocols.body import Body

JSON = "application/json"
_REFERENCE = "#/components/schemas/{model}"
# The statuses of errors that every route may have, and those of every route that takes a body.
_EVERY = (400, 401, 431)
_WITH_BODY = (408, 413, 415, 429, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """What the document says about one method of a path.

    Args:
        protocols: paths of the routes whose errors it may have, usually its own path alone.
        answers: types of the answers with status 200: empty if the route always refuses; None stands for an answer
            without a body.
        bodies: models of the bodies that it takes.
        media: media type of the answers.
        errors: statuses of its errors besides those of every route, and of every route with a body.
        is_open: whether it needs no key.
    """

    protocols: tuple[str, ...]
    answers: tuple[Any, ...]
    bodies: tuple[type[Body], ...] = ()
    media: str = JSON
    errors: tuple[int, ...] = ()
    is_open: bool = False

    def statuses(self) -> list[int]:
        """Return the statuses of its errors. TEI's protocol has 422 where the others have 400."""
        found = {*_EVERY, *self.errors, *(_WITH_BODY if self.bodies else ())}
        if TeiError in map(error_form, self.protocols):
            found.add(422)
        if any("model" in each.model_fields for each in self.bodies):
            found.add(404)
        if self.is_open:
            found.remove(401)
        return sorted(found)


def answer_type(make: Callable[..., Any]) -> Any:
    """Return the return type of a function."""
    return get_type_hints(make, include_extras=True)["return"]


_DESCRIPTIONS = (
    Operation(("/",), (str,), media="text/html", is_open=True),
    Operation(("/health",), (None,), errors=(503,), is_open=True),
    Operation(("/ping",), (None,), errors=(503,)),
    Operation(("/info",), (dict[str, Any],), errors=(503,)),
    Operation(("/v1/models",), (answer_type(openai.list_models),), errors=(503,)),
    Operation(("/v1/models/{model}",), (answer_type(openai.describe_model),), errors=(404, 503)),
    Operation(("/api/tags",), (answer_type(ollama.list_models),), errors=(503,)),
    Operation(("/api/version",), (answer_type(ollama.version),)),
    Operation(("/metrics",), (str,), media="text/plain"),
    Operation(("/openapi.json",), (dict[str, Any],)),
)


def list_operations() -> dict[tuple[str, str], Operation]:
    """Return what the document says about each route, by its method in lower case and its path."""
    found: dict[tuple[str, str], Operation] = {}
    for path in ("/", *ROUTES):
        protocols = SHARED[path][1] if path in SHARED else (path,)
        routes = [ROUTES[each] for each in protocols]
        found["post", path] = Operation(
            protocols,
            tuple(answer_type(each.render) for each in routes),
            tuple(dict.fromkeys(each.body for each in routes)),
        )
    for route in TOKENIZER_ROUTES:
        found["post", route.path] = Operation(
            (route.path,), (answer_type(route.work),), (route.body,)
        )
    for path in tei.REFUSED:
        found["post", path] = Operation((path,), ())
    return found | {("get", each.protocols[0]): each for each in _DESCRIPTIONS}


def make_document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application, whose routes in the schema are those of `list_operations`."""
    operations = list_operations()
    kinds = {
        kind
        for each in operations.values()
        for kind in (*each.bodies, *each.answers, *map(error_form, each.protocols))
    }
    mode: JsonSchemaMode = "validation"
    inputs = [(kind, mode, TypeAdapter(kind)) for kind in sorted(kinds, key=repr)]
    found, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE)
    schemas = {kind: schema for (kind, _), schema in found.items()}
    document = app.openapi()
    for (method, path), operation in operations.items():
        said = document["paths"][path][method]
        if operation.bodies:
            content = _content([schemas[each] for each in operation.bodies])
            said["requestBody"] = {"required": True, "content": content}
        if "{" in path:
            name = path.partition("{")[2].removesuffix("}")
            schema = {"type": "string"}
            said["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema}]
        said["responses"] = _responses(operation, schemas)
    document["components"] = {"schemas": definitions["$defs"]}
    return document


def _responses(operation: Operation, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what the document says about the responses of an operation."""
    errors = [schemas[error_form(path)] for path in operation.protocols]
    found: dict[str, Any] = {}
    if operation.answers:
        answers = [schemas[each] for each in operation.answers if each is not None]
        content = {"content": _content(answers, operation.media)} if answers else {}
        found["200"] = {"description": "the answer", **content}
    for status in operation.statuses():
        said = {"description": HTTPStatus(status).phrase, "content": _content(errors)}
        found[str(status)] = said
    return found


def _content(schemas: Iterable[Any], media: str = JSON) -> dict[str, Any]:
    """Return the `content` of a body or an answer that has one of the schemas."""
    listed: list[Any] = []
    for each in schemas:
        if each not in listed:
            listed.append(each)
    return {media: {"schema": listed[0] if len(listed) == 1 else {"anyOf": listed}}}
