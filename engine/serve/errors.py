"""Why a request fails, and how each protocol says so: OpenAI, text-embeddings-inference (TEI), Cohere, Ollama."""

from typing import Any

from lastword.errors import LastwordError

# The word for a status in OpenAI's shape, and TEI's.
_OPENAI_TYPES = {
    401: "authentication_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_TEI_TYPES = {401: "Unauthorized", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}


class ServeError(Exception):
    """A request that fails.

    Args:
        status: the HTTP status.
        message: what is wrong, for the client.
        code: a word for programs.
        param: the field of the body that is wrong.
        retry_seconds: when to try again; only with 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_seconds = retry_seconds

    def shown(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of the answer, in the protocol that the path belongs to."""
        if path.startswith("/v2/"):
            return self.status, {"message": self.message}
        if path.startswith("/api/"):
            return self.status, {"error": self.message}
        if path.startswith("/v1/") or path == "/score":
            kind = _OPENAI_TYPES.get(self.status, "invalid_request_error")
            error = {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
            return self.status, {"error": error}
        status = 422 if self.status == 400 and self.code != "empty" else self.status
        kind = "Empty" if self.code == "empty" else _TEI_TYPES.get(status, "Validation")
        if self.code == "device_error":
            kind = "Backend"
        return status, {"error": self.message, "error_type": kind}

    def headers(self) -> dict[str, str]:
        """Return the headers that tell a client whether and when to try again."""
        if self.retry_seconds is None:
            return {"x-should-retry": "false"} if self.status < 500 else {}
        seconds = min(max(self.retry_seconds, 0.05), 120.0)
        return {
            "retry-after": str(max(1, round(seconds))),
            "retry-after-ms": str(round(seconds * 1000)),
        }


def refuse_model(asked: str | None, name: str) -> None:
    """Raise ServeError if a request asks for a model of another name."""
    if asked is not None and asked not in (name, f"{name}:latest"):  # Ollama's tag
        said = f"model: {asked[:100]!r} is not served here; expected {name!r}."
        raise ServeError(404, said, code="model_not_found", param="model")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ServeError:
    """Make the error of a body that cannot be used."""
    return ServeError(400, message, param=param, code=code)


def from_lastword(error: LastwordError, param: str | None = None) -> ServeError:
    """Make the error of a setting or text that lastword refuses."""
    return bad_request(str(error), param)


def device_error(error: Exception) -> ServeError:
    """Make the error of a text that could not be computed; only lastword's own messages are shown."""
    said = str(error) if isinstance(error, LastwordError) else "the device could not compute it"
    return ServeError(503, said, code="device_error", retry_seconds=1.0)
