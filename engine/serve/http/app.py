"""The application: it reads each request, has it answered, and returns the response or the error."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp

import lastword
from lastword.errors import LastwordError
from lastword.model_info import ModelInfo
from lastword.serve.answers import Answer, to_json
from lastword.serve.errors import ServeError, bad_request, from_lastword
from lastword.serve.http.gate import LOG, Gate, encode_error
from lastword.serve.http.openapi import JSON, make_document
from lastword.serve.http.page import Page
from lastword.serve.http.routes import ROUTES, SHARED, TOKENIZER_ROUTES, ModelRoute, TokenizerRoute
from lastword.serve.metrics import CONTENT_TYPE
from lastword.serve.pairs import Scores
from lastword.serve.protocols import body as bodies
from lastword.serve.protocols import ollama, openai, tei
from lastword.serve.protocols.body import Body
from lastword.serve.reranking import Reranking
from lastword.serve.service import ONLY_RERANKS, Service
from lastword.serve.settings import Limits
from lastword.serve.texts import Prepared

# Short requests are handled in the event loop, without switching to a pool's thread. They have at most this many bytes,
# characters to tokenise and numbers in the answer, so that they do not delay other requests for long.
_SHORT_BODY, _MOST_CHARACTERS, _MOST_NUMBERS = 2_048, 32_768, 16_384
T = TypeVar("T")


# Returns the route for the JSON value of a body.
Choose = Callable[[object], ModelRoute]


class DirectRoute(APIRoute):
    """A route that calls its endpoint without FastAPI's handling of parameters.

    So every endpoint must be `async`, take the request and nothing else, and return a response.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself."""
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


class App(FastAPI):
    """FastAPI inside a `Gate`; for most requests, the gate calls the endpoint itself.

    FastAPI's own eight layers between the server and an endpoint do nothing that a `DirectRoute` needs.
    """

    service: Service

    def build_middleware_stack(self) -> ASGIApp:
        """Return FastAPI's own middleware with the gate around it."""
        found = (route for route in self.routes if isinstance(route, DirectRoute))
        direct = {
            (method, route.path): route
            for route in found
            if not route.param_convertors
            for method in route.methods or ()
        }
        return Gate(super().build_middleware_stack(), self.service, direct)


def make_app(service: Service) -> FastAPI:
    """Make the ASGI application of a service."""
    app = App(
        title="lastword",
        version=lastword.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would name the host that the client claims
    )
    app.router.route_class = DirectRoute
    for path in ("/", *ROUTES):
        _add_model_route(app, service, path)
    for route in TOKENIZER_ROUTES:
        _add_tokenizer_route(app, service, route)
    for path in tei.REFUSED:
        _add_refused_route(app, service, path)
    _add_descriptions(app, service)
    _add_page(app)
    app.add_exception_handler(ServeError, _on_serve_error)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _on_http_error)  # type: ignore[arg-type]
    app.service = service
    return app


def _add_model_route(app: FastAPI, service: Service, path: str) -> None:
    """Add a path that answers with vectors or scores."""
    find = SHARED[path][0] if path in SHARED else None
    first = ROUTES["/embed" if path == "/" else path]

    def choose(value: object) -> ModelRoute:
        return first if find is None else ROUTES[find(value)]

    async def endpoint(request: Request) -> Response:
        likely = ROUTES["/rerank"] if path == "/" and service.only_reranks else first
        return await respond(request, lambda: _compute(service, request, likely, choose))

    add_route(app, "POST", path, endpoint)


def _add_tokenizer_route(app: FastAPI, service: Service, route: TokenizerRoute) -> None:
    """Add a route that needs only the tokenizer."""

    async def work(request: Request) -> Response:
        service.backend(route.path, reranks=False)
        service.check_open()
        content = await read_body(request, service.limits)

        def answer() -> bytes:
            asked = bodies.validate(route.body, bodies.read_json(content))
            try:
                return to_json(route.work(service.model, asked))
            except LastwordError as error:
                raise from_lastword(error) from None

        with service.count_in_hand():
            return Response(await service.run_in_prepare_pool(answer), media_type=JSON)

    async def endpoint(request: Request) -> Response:
        return await respond(request, lambda: work(request))

    add_route(app, "POST", route.path, endpoint)


def _add_refused_route(app: FastAPI, service: Service, path: str) -> None:
    """Add a route of TEI that is always refused, with the reason."""

    async def endpoint(request: Request) -> Response:
        reason = ONLY_RERANKS if service.only_reranks else tei.REFUSED[path]
        error = bad_request(f"{path}: {reason}", code="not_supported")
        return error_response(error, request.url.path)

    add_route(app, "POST", path, endpoint)


def add_route(
    app: FastAPI, method: str, path: str, endpoint: Callable[[Request], Awaitable[Response]]
) -> None:
    """Add a route; `openapi.py` describes it in the OpenAPI document."""
    app.add_api_route(path, endpoint, methods=[method], name=path, response_class=Response)


async def respond(request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
    """Await `work`; return its response or an error response. An unforeseen error becomes a 500 without details."""
    try:
        return await work()
    except ServeError as error:
        failure = error
    except Exception as error:  # noqa: BLE001  a bug of ours
        LOG.error(
            "error", extra={"fields": {"kind": type(error).__name__, "path": request.url.path}}
        )
        failure = ServeError(500, "internal error")
    return error_response(failure, request.scope["state"].get("protocol", request.url.path))


def error_response(error: ServeError, path: str) -> Response:
    """Return the response for an error, in the form of the path's protocol."""
    status, content, headers = encode_error(error, path)
    return Response(content, status, headers, JSON)


async def _on_serve_error(request: Request, error: ServeError) -> Response:
    return error_response(error, request.url.path)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    said = "no such route" if error.status_code == 404 else "cannot be answered"
    # A path can have several routes.
    taken = sorted(_methods(request)) if error.status_code == 405 else []
    if taken:
        said = f"this route does not take {request.method}; expected {' or '.join(taken)}"
    answer = error_response(ServeError(error.status_code, f"{said}."), request.url.path)
    answer.headers.update(error.headers or {})
    if taken:
        answer.headers["allow"] = ", ".join(taken)
    return answer


def _methods(request: Request) -> set[str]:
    """Return the methods that the routes of a request's path take."""
    routes: list[Any] = request.app.routes
    found = (each for each in routes if each.matches(request.scope)[0] is not Match.NONE)
    return {method for route in found for method in route.methods}


async def _compute(
    service: Service, request: Request, first: ModelRoute, choose: Choose
) -> Response:
    """Answer one request for vectors or scores.

    Args:
        service: the server's state.
        request: the request.
        first: the route to assume before the body is read; its queue must have room.
        choose: returns the route for the JSON value of the body.
    """
    service.check_open(service.backend(first.path, reranks=first.reranks))
    content = await read_body(request, service.limits)
    service.check_open(service.backend(first.path, reranks=first.reranks))
    state = request.scope["state"]

    def prepare() -> tuple[ModelRoute, Body, Prepared]:
        with service.metrics.tokenization.time():
            value = bodies.read_json(content)
            route = choose(value)
            state["protocol"] = route.path  # an error takes the form of this protocol
            backend = service.backend(route.path, reranks=route.reranks)
            if route.reranks is not first.reranks:
                service.check_open(backend)
            asked = bodies.validate(route.body, value)
            backend.check_model(getattr(asked, "model", None))
            return route, asked, backend.prepare(route.call(asked))

    with service.count_in_hand():
        short = is_short(content)
        found = prepare() if short else await service.run_in_prepare_pool(prepare)
        route, asked, prepared = found
        backend = service.backend(route.path, reranks=route.reranks)
        job = await while_connected(
            request, service.compute(str(state["owner"]), prepared, backend)
        )
        if job is None:
            return Response(status_code=499)

        def render() -> tuple[bytes, Answer | Scores]:
            answer = backend.answer(job)
            return to_json(route.render(asked, answer)), answer

        short = short and len(prepared.ids) * prepared.format.dim <= _MOST_NUMBERS
        written, answer = render() if short else await service.run_in_answer_pool(render)
    state["counts"] = {
        "texts": len(prepared.ids),
        "tokens": prepared.tokens,
        "computed": answer.computed,
    }
    return Response(written, 200, answer.headers(), JSON)


def is_short(content: bytes) -> bool:
    """Return whether a body is small and has few texts, since each text may get a prompt as long as the body."""
    size = len(content)
    return size <= _SHORT_BODY and size * (content.count(b",") + 1) <= _MOST_CHARACTERS


async def while_connected(request: Request, work: Awaitable[T]) -> T | None:
    """Await `work` and return its result; if the client disconnects first, cancel `work` and return None."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limits: Limits) -> bytes:
    """Read the body of a request, within the limits on size and time.

    Raises:
        ServeError: the body is too large, too slow or compressed, or the client has disconnected.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ServeError(415, "content-encoding: not accepted; send the body uncompressed.")
    most, seconds = limits.max_body_bytes, limits.body_seconds
    too_large = ServeError(413, f"body: too large; expected at most {most:,} bytes.")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > most:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ServeError(499, "the client has disconnected")
                content += message.get("body", b"")
                if len(content) > most:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(content)
    except TimeoutError:
        raise ServeError(408, f"body: incomplete after {seconds} s.") from None


def _add_page(app: FastAPI) -> None:
    """Add the page for browsers."""
    page = Page()

    async def endpoint(_: Request) -> Response:
        return Response(page.content, headers=page.headers)

    add_route(app, "GET", "/", endpoint)
    app.add_api_route("/", endpoint, methods=["HEAD"], include_in_schema=False)


def _add_descriptions(app: FastAPI, service: Service) -> None:
    """Add the GET routes that describe the server."""

    def add(path: str, make: Callable[[Request], Response]) -> None:
        async def endpoint(request: Request) -> Response:
            async def work() -> Response:
                return make(request)

            return await respond(request, work)

        add_route(app, "GET", path, endpoint)

    @cache
    def document() -> dict[str, Any]:
        return make_document(app)

    def health(_: Request) -> Response:
        service.check_ready()
        return Response(status_code=200)

    def model(request: Request) -> Response:
        asked, first = str(request.path_params["model"]), service.backends[0]
        name = asked if asked in names() else first.name
        if name == first.name:
            first.check_model(asked)
        return json_answer(openai.describe_model(name, service.created))

    def names() -> list[str]:
        return [backend.name for backend in service.backends]

    def embedding_models() -> list[str]:
        return [backend.name for backend in service.backends if backend is service]

    add("/health", health)
    add("/ping", health)
    add("/info", lambda _: json_answer(describe(service)))
    add("/v1/models", lambda _: json_answer(openai.list_models(names(), service.created)))
    add("/v1/models/{model:path}", model)
    add("/api/tags", lambda _: json_answer(ollama.list_models(embedding_models())))
    add("/api/version", lambda _: json_answer(ollama.version()))
    add("/metrics", lambda _: Response(service.metrics.text(), media_type=CONTENT_TYPE))
    add("/openapi.json", lambda _: json_answer(document()))


def json_answer(value: object) -> Response:
    """Return a response with `value` as JSON."""
    return Response(to_json(value), media_type=JSON)


def describe(service: Service) -> dict[str, Any]:
    """Return the answer to `GET /info`: TEI's fields, then our own. Fields that a reranker alone lacks are null."""
    first, limits = service.backends[0], service.limits
    model = first.model
    info = model.info
    kind: dict[str, Any] = {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    dim: int | None = None
    space: str | None = None
    if isinstance(info, ModelInfo):
        kind = {"embedding": {"pooling": "last_token"}}
        dim, space = info.dim, info.space_fingerprint()
    return {
        "model_id": first.name,
        "model_sha": info.files.revision,
        "model_dtype": str(info.dtype).removeprefix("torch."),
        "served_model_name": first.name,
        "model_type": kind,
        "max_concurrent_requests": limits.max_requests,
        "max_input_length": info.max_length,
        "max_batch_tokens": model.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.max_inputs,
        "auto_truncate": service.settings.truncate,
        "tokenization_workers": 2,
        "version": lastword.__version__,
        "sha": None,
        "docker_label": None,
        "dim": dim,
        "prompts": sorted(info.prompts),
        "default_prompt": info.default_prompt_name,
        "space": space,
        "quantize": info.quantize,
        "device": ",".join(map(str, info.devices)),
        "accept_token_ids": service.settings.accept_token_ids,
        "limits": asdict(limits),
        "reranker": None if service.reranking is None else _describe_reranker(service.reranking),
    }


def _describe_reranker(reranking: Reranking) -> dict[str, Any]:
    """Return what `GET /info` says about the reranker."""
    model = reranking.model
    info = model.info
    return {
        "model_id": reranking.name,
        "model_sha": info.files.revision,
        "model_dtype": str(info.dtype).removeprefix("torch."),
        "max_input_length": info.max_length,
        "max_batch_tokens": model.loop.budget.limit,
        "instruction": info.resolve_instruction({}),
        "quantize": info.quantize,
        "device": ",".join(map(str, info.devices)),
    }
