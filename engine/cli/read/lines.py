"""Read the lines of inputs, each with its error, if any, and count the bytes read."""

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol, TextIO

from lastword.cli.read.kinds import STDIN, Source, kind_of, not_utf8, refuse_utf16
from lastword.cli.read.opening import KeptOpen, PartStream, Unpacked, open_bytes
from lastword.cli.read.urls import ReadError, scheme_of, status_of
from lastword.errors import InputError, lone_surrogate

_BYTE_ORDER_MARK = "\ufeff"
# The most characters of a record. This limit stops the reading of an endless device, or of a large file with an
# unclosed quote, before memory runs out; a JSON object of this length takes up to 1 GB of memory.
MAX_RECORD = 1 << 25


class Readline(Protocol):
    """A stream of text."""

    def readline(self, size: int, /) -> str:
        """Read a line, or up to `size` characters of it; "" at the end."""


# A line with its line end, and its error, if it has one.
Line = tuple[str, InputError | None]


class Meter:
    """Counts the bytes read from the inputs: compressed bytes of a compressed file, unpacked bytes of a part of one.

    `total` is the size of all inputs; None if the size of one is not known.
    """

    def __init__(self, inputs: Sequence[Source]) -> None:
        sizes = [_size(source) for source in inputs if source.problem is None]
        known = [size for size in sizes if size is not None]
        self.total = sum(known) if len(known) == len(sizes) else None
        self._before = self._inside = 0
        self._tell: Callable[[], int] = _nothing

    def begin(self, stream: TextIO) -> None:
        """Start to count the bytes read from `stream`, an input that has just been opened."""
        if self.total is not None:
            raw = getattr(stream.buffer, "raw", None)
            self._tell = raw.count_taken if isinstance(raw, Unpacked) else stream.buffer.tell

    def end(self) -> None:
        """Finish counting the current input, which has been read to its end or given up."""
        with suppress(ValueError):  # the garbage collector may have closed the file before
            self._before += self._tell()
        self._tell = _nothing

    def set(self, read: int) -> None:
        """Note that `read` bytes of the current input have been read, if it is not read as a stream."""
        self._inside = read

    def end_file(self, source: Source) -> None:
        """Finish counting an input that is not read as a stream."""
        self._before, self._inside = self._before + (_size(source) or 0), 0

    def position(self) -> int:
        """Return how many bytes have been read so far; 0 if `total` is None."""
        return 0 if self.total is None else self._before + self._inside + self._tell()


def _nothing() -> int:
    return 0


def _size(source: Source) -> int | None:
    """Return the size of a regular file, of a URL's file, or of the part to read; None if it is not known."""
    if source.part is not None:
        return source.part.stop - source.part.start + len(source.part.header)
    if scheme_of(source.path) is not None:
        with suppress(InputError):  # opening the input reports the error
            return status_of(source.path)[0]
        return None
    try:
        status = os.stat(sys.stdin.fileno() if source.path == STDIN else source.path)
    except (AttributeError, OSError, ValueError):  # opening the input reports the error
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def open_source(source: Source, kept: KeptOpen | None = None) -> TextIO:
    """Open an input to read its lines.

    A strict decoder works on blocks, so its errors cannot name the line of an invalid byte. Therefore the error handler
    is `surrogateescape`, which turns each invalid byte, and nothing else, into a lone surrogate; `lines_of` looks for
    lone surrogates in each line.

    Args:
        source: the input.
        kept: keeps a compressed file open from one part to the next, if given.

    Raises:
        InputError: the input cannot be opened.
    """
    if source.path == STDIN and sys.stdin is None:
        raise InputError("stdin", "is closed", remedy="Name a file.")
    try:
        url = scheme_of(source.path) is not None
        if source.part is not None or source.packed is not None or url:
            raw = open_bytes(source) if source.part is None else PartStream(source, kept)
            return io.TextIOWrapper(
                io.BufferedReader(raw, 1 << 20),
                encoding="utf-8",
                errors="surrogateescape",
                newline="\n",
            )
        return open(
            sys.stdin.fileno() if source.path == STDIN else source.path,
            encoding="utf-8",
            errors="surrogateescape",
            newline="\n",
            closefd=source.path != STDIN,
        )
    except OSError as error:
        raise ReadError(source.name, f"cannot be read ({error.strerror or error})") from error


def lines_of(stream: Readline, source: Source) -> Iterator[Line]:
    """Yield each line, with an error if it is not UTF-8 or is too long for a record; a line that is too long is cut.

    Raises:
        InputError: the file cannot be read, or is of a known kind that is not UTF-8 text.
    """
    number, first = source.lines_before, ""
    while line := _next_line(stream, source):
        number, stored = number + 1, line
        problem = too_long(f"{source.name}:{number}", len(line))
        if number == 1:
            first = line[:8]
            line = line.removeprefix(_BYTE_ORDER_MARK)
            if problem is None:
                refuse_utf16(line, source)
            if not line:
                return
        if problem is None and not line.isascii() and (bad := lone_surrogate(stored)) is not None:
            problem = not_utf8(f"{source.name}:{number}", stored, bad, first, source)
            if kind_of(first) is not None:
                raise problem  # the other lines cannot be text either
        yield line, problem
        while problem is not None and len(line) > MAX_RECORD:  # skip the rest of the line
            line = _next_line(stream, source)


def _next_line(stream: Readline, source: Source) -> str:
    try:
        return stream.readline(MAX_RECORD + 1)
    except OSError as error:
        raise ReadError(source.name, f"cannot be read ({error.strerror or error})") from error


def too_long(where: str, size: int) -> InputError | None:
    """Return the error for a record of `size` characters, or None if it is not too long."""
    if size <= MAX_RECORD:
        return None
    return InputError(
        where,
        "is too long for one record",
        expected=f"at most {MAX_RECORD:,} characters",
        remedy="Check the file's format, or split the text.",
    )
