"""Open the outputs of a command: a file replaces the old one once complete; a device or pipe is written as it goes."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from lastword.errors import InputError

_STANDARD = {"-": 1, "/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")


def is_stdout(path: str) -> bool:
    """Return whether a path names stdout: `-`, /dev/stdout, /dev/fd/1."""
    return _descriptor(path) == 1


def is_stream(path: str) -> bool:
    """Return whether a path names a stream: an open file of this process, a character device or a pipe.

    Replacing one of these by a new file would write to the wrong place: /dev/stdout is a link to the file to which the
    shell redirects.
    """
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


# Extensions that name a format; a file with another one, or none, may hold any.
_FORMAT_OF = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    **{each: each for each in ("json", "safetensors", "npy", "csv", "tsv", "parquet", "yaml")},
}


def check_extension(path: str | None, style: str, by: str) -> None:
    """Check that the extension of an output does not name another format than the one that is written.

    Args:
        path: the output; None means none.
        style: the format: jsonl or safetensors.
        by: what chooses it, for the message.

    Raises:
        InputError: it names another one.
    """
    ending = "" if path is None else os.path.splitext(path)[1].lower().removeprefix(".")
    if path is not None and _FORMAT_OF.get(ending, style) != style and not is_stream(path):
        what, got = "has the extension of another format", f".{ending} with {by}"
        raise InputError(path, what, got=got, expected=f".{style}")


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """Yield a byte stream to an output; a file gets its content only when the block ends without an error.

    Raises:
        InputError: the output cannot be opened.
    """
    from lastword.weights.files.atomic import name_write_errors, replace_file

    if not is_stream(path):
        with replace_file(path) as file:
            yield file
        return
    number = _descriptor(path)
    with ExitStack() as files:
        with name_write_errors(path):
            # Unbuffered: an error belongs to the write that caused it, and closing the stream writes nothing.
            place = path if number is None else os.dup(number)
            stream = files.enter_context(open(place, "wb", buffering=0))
        yield stream


def _descriptor(path: str) -> int | None:
    """Return the number of the open file of this process that a path names, or None if it names none."""
    found = _DESCRIPTOR.fullmatch(path)
    return int(found[1]) if found else _STANDARD.get(path)
