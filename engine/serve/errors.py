"""The error of a failed request, and its form in each protocol.

The protocols are those of OpenAI, text-embeddings-inference (TEI), Cohere and Ollama.
"""

from typing import Any

from typing_extensions import TypedDict

from lastword.errors import LastwordError


class OpenAIErrorDetails(TypedDict):
    """What is wrong, in OpenAI's protocol."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """The body of an error in OpenAI's protocol, which Jina and vLLM share."""

    error: OpenAIErrorDetails


class TeiError(TypedDict):
    """The body of an error in the protocol of text-embeddings-inference (TEI)."""

    error: str
    error_type: str


class CohereError(TypedDict):
    """The body of an error in Cohere's protocol."""

    message: str


class OllamaError(TypedDict):
    """The body of an error in Ollama's protocol."""

    error: str


ErrorBody = OpenAIError | TeiError | CohereError | OllamaError

# The error type that OpenAI and TEI give for an HTTP status.
_OPENAI_TYPES = {
    401: "authentication_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_TEI_TYPES = {401: "Unauthorized", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}


class ServeError(Exception):
    """Why a request failed.

    Args:
        status: the HTTP status.
        message: what is wrong, for the client's user.
        code: the kind of error in one word, for programs.
        param: the field of the body that is wrong.
        retry_seconds: seconds after which to try again; only with status 429 and 503.
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

    def response(self, path: str) -> tuple[int, ErrorBody]:
        """Return the HTTP status and the body, in the form of the protocol that the path belongs to."""
        form = error_form(path)
        if form is CohereError:
            return self.status, {"message": self.message}
        if form is OllamaError:
            return self.status, {"error": self.message}
        if form is OpenAIError:
            kind = _OPENAI_TYPES.get(self.status, "invalid_request_error")
            error: OpenAIErrorDetails = {
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
        """Return the headers that say whether, and after how long, to try again."""
        if self.retry_seconds is None:
            return {"x-should-retry": "false"} if self.status < 500 else {}
        seconds = min(max(self.retry_seconds, 0.05), 120.0)
        return {
            "retry-after": str(max(1, round(seconds))),
            "retry-after-ms": str(round(seconds * 1000)),
        }


def error_form(path: str) -> Any:
    """Return the type of the errors of a path, one of the members of `ErrorBody`."""
    if path.startswith("/v2/"):
        return CohereError
    if path.startswith("/api/"):
        return OllamaError
    return OpenAIError if path.startswith("/v1/") or path == "/score" else TeiError


def check_model_name(asked: str | None, name: str) -> None:
    """Raise ServeError if a request names a model other than `name`; a request that names none is accepted."""
    if asked is not None and asked not in (name, f"{name}:latest"):  # Ollama appends this tag
        said = f"model: {asked[:100]!r} is not served here; expected {name!r}."
        raise ServeError(404, said, code="model_not_found", param="model")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ServeError:
    """Make the error for a body that is not valid."""
    return ServeError(400, message, param=param, code=code)


def from_lastword(error: LastwordError, param: str | None = None) -> ServeError:
    """Make the error for a setting or a text that the engine refuses."""
    return bad_request(str(error), param)


def device_error(error: Exception) -> ServeError:
    """Make the error for a text that could not be embedded or scored. The client sees only lastword's own messages."""
    said = str(error) if isinstance(error, LastwordError) else "the device could not compute it"
    return ServeError(503, said, code="device_error", retry_seconds=1.0)
