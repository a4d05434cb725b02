"""The middleware around every request: it gives the request an id, checks its key, measures it and logs it."""

import json
import logging
from collections.abc import Mapping
from time import perf_counter
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lastword.serve.answers import to_json
from lastword.serve.errors import ServeError
from lastword.serve.http import page
from lastword.serve.service import Service

LOG = logging.getLogger("lastword.serve")
# The most bytes of a request's first line and headers, together.
HEADER_BYTES = 32 << 10
_MAX_ID_LENGTH = 128
# Paths that need no key, for load balancers.
_OPEN = ("/health",)


class Gate:
    """ASGI middleware; it puts a name for the client (`owner`) and the id of the request into the scope's state.

    Args:
        app: what handles the requests for which `direct` has no route.
        service: the server's state.
        direct: routes by method and path. Their endpoints take the request, raise nothing and return the response.
    """

    def __init__(
        self, app: ASGIApp, service: Service, direct: Mapping[tuple[str, str], Any]
    ) -> None:
        self._app, self._service, self._direct = app, service, direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: pass it on to the app, or answer it with an error."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, path = perf_counter(), str(scope["path"])
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        seen = {"status": 0, "bytes": 0}

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            elif message["type"] == "http.response.body":
                seen["bytes"] += len(message.get("body", b""))
            await send(message)

        self._service.connected += 1
        try:
            client = scope["client"][0] if scope.get("client") else ""
            owner = self._service.keys.owner(headers.get("authorization", ""), client)
            refused = _unusable(scope, headers)
            is_open = path in _OPEN or page.is_open(scope["method"], path)
            if owner is None and not is_open:
                refused = ServeError(
                    401, "authorization: missing or wrong key.", code="invalid_api_key"
                )
            if refused is not None:
                await _refuse(refused, path, send_counted)
            else:
                scope.setdefault("state", {}).update(owner=owner or "", request_id=request_id)
                await self._pass_on(scope, receive, send_counted)
        finally:
            self._service.connected -= 1
            seconds = perf_counter() - began
            status = str(seen["status"] or 499)  # no response: the client has disconnected
            metrics = self._service.metrics
            metrics.requests[_route(scope), status] += 1
            if "counts" in scope.get("state", {}):  # set with vectors and scores
                metrics.duration.observe(seconds)
            _log(scope, request_id, status, seen["bytes"], seconds)
        return None

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._direct.get((scope["method"], scope["path"]))
        if route is None:
            return await self._app(scope, receive, send)
        scope["route"] = route
        response: Response = await route.endpoint(Request(scope, receive))
        return await response(scope, receive, send)


def encode_error(error: ServeError, path: str) -> tuple[int, bytes, dict[str, str]]:
    """Return the HTTP status, the body as JSON and the headers for an error, in the form of the path's protocol."""
    status, body = error.response(path)
    return status, to_json(body), error.headers()


def _unusable(scope: Scope, headers: Headers) -> ServeError | None:
    """Return the error for headers that are too large, or give the length of the body in two ways; else None."""
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if size + sum(len(name) + len(value) + 4 for name, value in headers.raw) > HEADER_BYTES:
        return ServeError(431, f"headers: too large; expected at most {HEADER_BYTES:,} bytes.")
    if "content-length" in headers and "transfer-encoding" in headers:
        said = "headers: content-length and transfer-encoding; expected only one of them."
        return ServeError(400, said)
    return None


async def _refuse(error: ServeError, path: str, send: Send) -> None:
    """Answer a request with an error without reading its body, and close the connection."""
    status, body, headers = encode_error(error, path)
    named = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **({"www-authenticate": "Bearer"} if status == 401 else {}),
        "connection": "close",
        **headers,
    }
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _request_id(given: str | None) -> str:
    """Return the id that the client gave, if it is short printable ASCII, else a new one."""
    if given and len(given) <= _MAX_ID_LENGTH and given.isascii() and given.isprintable():
        return given
    return f"req-{uuid4().hex}"


def _route(scope: Scope) -> str:
    """Return the path of the route instead of the request's, so that invented paths add no series to the metrics."""
    return str(getattr(scope.get("route"), "path", "none"))


def _log(scope: Scope, request_id: str, status: str, size: int, seconds: float) -> None:
    """Log one line about a request, without its texts, its query string or its key."""
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": str(scope["path"])[:200],
        "status": int(status),
        "ms": round(1000 * seconds, 2),
        "bytes": size,
        "request_id": request_id,
        **scope.get("state", {}).get("counts", {}),
    }
    LOG.info("request", extra={"fields": fields})


class LogFormat(logging.Formatter):
    """Formats log records as text or, with `as_json`, as one JSON object per line."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for a record. Exceptions are left out, since their messages may quote a request."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        if self._as_json:
            head = {
                "time": self.formatTime(record),
                "level": record.levelname.lower(),
                "message": record.getMessage(),
            }
            return json.dumps({**head, **fields}, ensure_ascii=True)
        listed = " ".join(f"{name}={value!s}" for name, value in fields.items())
        text = f"{record.getMessage()} {listed}".strip()
        return f"lastword: {text.encode('unicode_escape').decode('ascii')}"
