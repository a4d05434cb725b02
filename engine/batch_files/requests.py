"""Read the lines of a batch file as requests, in groups, and say what is wrong with a line that is not a request."""

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from lastword.cli.read.kinds import kind_of
from lastword.errors import InputError, count, one_line
from lastword.serve.errors import ServeError, bad_request
from lastword.serve.protocols.body import Body, read_json, validate

# A group is complete at this many lines, bytes or texts: enough texts to share beginnings and to fill batches, few
# enough for memory.
GROUP_LINES = 4096
_GROUP_BYTES = 4_000_000
_GROUP_TEXTS = 4096
_SKIPPED_BYTES = 1 << 20  # how much of a line that is too long is read at a time
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The custom_id of a line that is too long to be parsed, if it comes first.
_FIRST_ID = re.compile(rb'\s*\{\s*("custom_id"\s*:\s*"(?:[^"\\\x00-\x1f]|\\.){0,1000}")\s*[,}]')
# OpenAI's codes for what is wrong with a line, by the kind of error or by the field.
_CODES = {"invalid_json": "invalid_json_line", "missing": "missing_required_parameter"}
_CODES |= {"extra_forbidden": "unknown_parameter", "duplicate": "duplicate_custom_id"}
_CODES |= {"too_long": "line_too_long"}
_CODES_OF_FIELDS = {"method": "invalid_method", "url": "invalid_url"}


class BatchLine(Body):
    """A line of a batch file; `body` is checked later, by the route that `url` names."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: Any


@dataclass(frozen=True, slots=True)
class Request:
    """A line of a batch file.

    Args:
        line: the number of the line, from 1.
        size: the number of bytes of the line, with its line end.
        custom_id: the caller's name for the request; None if the line has none.
        url: the path of the route that is to answer.
        body: the body for that route.
        error: OpenAI's code for what is wrong with the line, and a message; None if the line is a request.
    """

    line: int
    size: int
    custom_id: str | None
    url: str = ""
    body: object = None
    error: tuple[str, str] | None = None

    @property
    def texts(self) -> int:
        """About how many texts the request has, known without checking the body."""
        if not isinstance(self.body, dict):
            return 1
        lists = (each for each in map(self.body.get, ("input", "documents")))
        return max((len(each) for each in lists if isinstance(each, list)), default=1)


@dataclass(frozen=True, slots=True)
class RequestGroup:
    """Consecutive requests, which are computed together.

    Args:
        requests: the requests.
        digest: the hash of the input from its beginning to the end of this group.
    """

    requests: list[Request]
    digest: bytes

    def ids(self) -> list[str]:
        """Return, for each request, a hash of its line number and of the input up to the end of the group."""
        return [
            hashlib.sha256(self.digest + str(each.line).encode()).hexdigest()[:32]
            for each in self.requests
        ]


class RequestReader:
    """Reads the requests of a batch file; blank lines are left out.

    Args:
        stream: the file.
        name: its name, for messages.
        urls: for each path that a request may name, None, or the reason why it cannot be answered.
        max_line: maximum bytes of a line, without its line end; longer lines become errors.
    """

    def __init__(
        self, stream: BinaryIO, name: str, urls: Mapping[str, str | None], max_line: int
    ) -> None:
        self._stream, self._name, self._urls, self._max_line = stream, name, urls, max_line
        self._hash, self._line, self._known = hashlib.sha256(), 0, _KnownIds()

    def groups(self) -> Iterator[RequestGroup]:
        """Yield groups of requests.

        Raises:
            InputError: the file cannot be read, or is of another kind, such as a zip file.
        """
        requests, size, texts = list[Request](), 0, 0
        while (request := self._next()) is not None:
            requests.append(request)
            size += request.size if request.error is None else 0
            texts += request.texts
            if len(requests) == GROUP_LINES or size >= _GROUP_BYTES or texts >= _GROUP_TEXTS:
                yield RequestGroup(requests, self._hash.digest())
                requests, size, texts = [], 0, 0
        if requests:
            yield RequestGroup(requests, self._hash.digest())

    def _next(self) -> Request | None:
        """Return the next request, or None at the end of the file."""
        while line := self._read(self._max_line + len(b"\r\n")):
            self._line, size, end = self._line + 1, len(line), line[-2:]
            if size > self._max_line:
                while end[-1:] != b"\n" and (more := self._read(_SKIPPED_BYTES)):
                    size, end = size + len(more), (end + more)[-2:]
            if self._line == 1:
                self._check_kind(line)
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line := line.rstrip():
                ended = len(end) - len(end.removesuffix(b"\n").removesuffix(b"\r"))
                return self._parse(line, size, size - ended)
        return None

    def _check_kind(self, line: bytes) -> None:
        found = kind_of(line[:8].decode(errors="surrogateescape"))
        if found is not None:
            remedy = "Convert it to JSON lines first, or unpack it."
            raise InputError(self._name, "is not JSON lines", got=found[0], remedy=remedy)

    def _read(self, most: int) -> bytes:
        try:
            found = self._stream.readline(most)
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
            raise InputError(self._name, what) from error
        self._hash.update(found)
        return found

    def _parse(self, line: bytes, size: int, length: int) -> Request:
        """Make the request of a line.

        Args:
            line: the line; only its beginning if it has more than `max_line` bytes.
            size: its number of bytes.
            length: its number of bytes without the line end.
        """
        value, problem, url, body = dict[str, Any](), None, "", None
        try:
            if length > self._max_line:
                if (found := _FIRST_ID.match(line)) is not None:
                    with suppress(ServeError):  # it is not valid JSON
                        value = _as_object(b"{%s}" % found[1])
                said = (
                    f"too long; got {count(length, 'byte')}, expected at most {self._max_line:,}."
                )
                raise bad_request(said, code="too_long")
            value = _as_object(line)
            checked = validate(BatchLine, value)
            url, body = checked.url, checked.body
            self._check_url(url)
        except ServeError as error:
            problem = error
        given = value.get("custom_id")
        custom_id = given if isinstance(given, str) else None
        if custom_id is not None:
            before = self._known.add(custom_id, self._line)
            if before is not None and problem is None:
                said = (
                    f"custom_id: {one_line(custom_id, 100)!r} was given before, in line {before:,}."
                )
                problem = bad_request(said, "custom_id", "duplicate")
        if problem is None:
            return Request(self._line, size, custom_id, url, body)
        code = _CODES.get(problem.code or "") or _CODES_OF_FIELDS.get(problem.param or "")
        message = f"line {self._line:,}: {problem.message}"
        return Request(self._line, size, custom_id, error=(code or "invalid_value", message))

    def _check_url(self, url: str) -> None:
        reason = self._urls.get(url, f"unknown; expected {' or '.join(self._urls)}.")
        if reason is not None:
            raise bad_request(f"url: {one_line(url, 100)!r}: {reason}", "url")


def _as_object(line: bytes) -> dict[str, Any]:
    """Parse a line; raise ServeError if it is not a JSON object."""
    try:
        value = read_json(line)
    except ServeError as error:  # its message names the body of an HTTP request
        raise bad_request(error.message.removeprefix("body: "), code="invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("not a JSON object.", code="invalid_json")
    return value


class _KnownIds:
    """The custom_ids of all lines so far, in a temporary file, so that memory does not grow with their number."""

    def __init__(self) -> None:
        # The empty name means a temporary file, which SQLite removes at the end.
        self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setup in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA cache_size = -32768",  # KiB
            "CREATE TABLE known (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID",
            "BEGIN",
        ):
            self._base.execute(setup)

    def add(self, custom_id: str, line: int) -> int | None:
        """Note a custom_id; return the number of the first line that had it, or None if this is the first."""
        given = (custom_id, line)
        try:
            added = self._base.execute("INSERT OR IGNORE INTO known VALUES (?, ?)", given)
            if added.rowcount:
                return None
            found = self._base.execute("SELECT line FROM known WHERE id = ?", given[:1])
        except sqlite3.Error as error:
            where = "temporary folder"
            raise InputError(where, f"cannot hold the custom_ids ({error})") from error
        return int(found.fetchone()[0])
