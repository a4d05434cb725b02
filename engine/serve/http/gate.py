"""What happens around every request: its id, the check of its key, its line in the log."""

import json
import logging
from time import perf_counter
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lastword.serve.answers import to_json
from lastword.serve.errors import ServeError
from lastword.serve.service import Service

LOG = logging.getLogger("lastword.serve")
_MOST_ID = 128
# Open to everybody: what a load balancer asks.
_OPEN = ("/health",)


class Gate:
    """ASGI middleware; puts `owner` and `request_id` into the scope's state."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, path = perf_counter(), str(scope["path"])
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        seen = {"status": 0, "bytes": 0}

        async def sent(message: Message) -> None:
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
            if owner is None and path not in _OPEN:
                await _refuse(path, sent)
            else:
                scope.setdefault("state", {}).update(owner=owner or "", request_id=request_id)
                await self._app(scope, receive, sent)
        finally:
            self._service.connected -= 1
            seconds = perf_counter() - began
            status = str(seen["status"] or 499)  # the client has gone
            metrics = self._service.metrics
            metrics.requests[_route(scope), status] += 1
            metrics.duration.observe(seconds)
            _log(scope, request_id, status, seen["bytes"], seconds)
        return None


def error_answer(error: ServeError, path: str) -> tuple[int, bytes, dict[str, str]]:
    """Return the status, the body and the headers of a failed request."""
    status, body = error.shown(path)
    return status, to_json(body), error.headers()


async def _refuse(path: str, send: Send) -> None:
    """Answer a request without an accepted key; its body is not read."""
    error = ServeError(401, "authorization: missing or wrong key.", code="invalid_api_key")
    status, body, headers = error_answer(error, path)
    named = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "www-authenticate": "Bearer",
        "connection": "close",
        **headers,
    }
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _request_id(given: str | None) -> str:
    """Return the client's id if it can be echoed, else a new one."""
    if given and len(given) <= _MOST_ID and given.isascii() and given.isprintable():
        return given
    return f"req-{uuid4().hex}"


def _route(scope: Scope) -> str:
    """Return the path of the route, not of the request: what clients invent makes no new series."""
    return str(getattr(scope.get("route"), "path", "none"))


def _log(scope: Scope, request_id: str, status: str, size: int, seconds: float) -> None:
    """Write a line about a request: nothing of its texts, no query, no key."""
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
    """Log lines as text or, with `as_json`, as one JSON object each."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what an exception says is left out, since it may quote a request."""
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
