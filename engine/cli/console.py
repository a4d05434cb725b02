"""Printing for all commands: text on stdout, one-line messages on stderr.

Either stream may be closed or full, or its reader may be gone; only this module handles these cases.
It knows nothing about models or records.
"""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import BinaryIO, TextIO

from lastword.errors import InputError, printable

STDOUT = "stdout"  # the name of stdout in messages


class ReaderGone(Exception):  # noqa: N818  not an error: other programs end silently too
    """The reader of stdout is gone, as in `lastword search ... | head -1`."""


def say(message: str) -> None:
    """Print one line on stderr; a stderr that is closed or full is not an error."""
    if sys.stderr is None:
        return
    try:
        print(f"lastword: {printable(message)}", file=sys.stderr, flush=True)
    except OSError:
        _abandon(sys.stderr)


def say_all(messages: Iterable[str], *, quiet: bool) -> None:
    """Print messages on stderr, one per line, unless `quiet` is set."""
    for message in () if quiet else messages:
        say(message)


def shows_progress(*, quiet: bool) -> bool:
    """Return whether to show a progress bar: only on a terminal, and not if `quiet` is set."""
    from lastword.progress import on_terminal

    return not quiet and on_terminal()


def stdout_bytes() -> BinaryIO:
    """Return stdout as a byte stream, which takes UTF-8 in any locale.

    Raises:
        InputError: stdout is closed.
    """
    if sys.stdout is None:
        raise InputError(STDOUT, "is closed", remedy="Name a file with -o.")
    return sys.stdout.buffer


def attempt(action: Callable[[], object], name: str) -> None:
    """Run a write, flush or sync of the file or stream `name`.

    Raises:
        ReaderGone: the reader of stdout is gone.
        InputError: the action failed; the message names the file or stream by `name`.
    """
    try:
        action()
    except BrokenPipeError as error:
        if name == STDOUT:
            raise ReaderGone from error
        what = "was closed by its reader before everything was written"
        raise InputError(name, what) from error
    except OSError as error:
        raise InputError(name, f"cannot be written ({error.strerror or error})") from error


def put(stream: BinaryIO, data: bytes | memoryview, name: str) -> None:
    """Write all of `data` to `stream`, in several calls if the stream is unbuffered and takes only part of it.

    Raises:
        ReaderGone, InputError: as for `attempt`.
    """
    rest = memoryview(data)

    def write_some() -> None:
        nonlocal rest
        rest = rest[stream.write(rest) :]

    while rest:
        attempt(write_some, name)


def print_lines(lines: list[str]) -> None:
    """Print lines on stdout."""
    print_text("".join(f"{line}\n" for line in lines))


def print_text(text: str) -> None:
    """Print text on stdout as UTF-8 and flush it."""
    stream = stdout_bytes()
    put(stream, text.encode("utf-8", "backslashreplace"), STDOUT)
    attempt(stream.flush, STDOUT)


def close_stdout() -> None:
    """Flush stdout.

    Raises:
        ReaderGone: the reader of stdout is gone.
        InputError: stdout cannot be written.
    """
    if sys.stdout is None:
        return
    try:
        attempt(sys.stdout.flush, STDOUT)
    except (InputError, ReaderGone):
        _abandon(sys.stdout)
        raise


def _abandon(stream: TextIO) -> None:
    """Redirect a failed stream to the null device.

    The interpreter flushes the stream again when it exits; a second failure would print a traceback.
    """
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
