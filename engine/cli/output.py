"""Open the outputs of a command. A new file replaces an old one only once complete; a stream is written to directly."""

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
    """Return whether a path names stdout: `-`, /dev/stdout, /dev/fd/1 or /proc/self/fd/1."""
    return _descriptor(path) == 1


def is_stream(path: str) -> bool:
    """Return whether a path names a stream: an open file of this process, a character device or a pipe.

    A stream must be written to, not replaced by a new file: /dev/stdout, for example, is a link, and a new file in its
    place would not be where the shell redirects stdout to.
    """
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


_PACKED = ("gz", "bz2", "xz", "zst", "zip")  # lastword writes no packed files
# Extensions that name a format. A file with no extension, or one that is not listed here, may hold any format.
_FORMAT_OF = {
    **dict.fromkeys(("jsonl", "ndjson", "txt", "log"), "jsonl"),
    **{each: each for each in ("md", "html", "xml", "npz", "pt", *_PACKED)},
    **{each: each for each in ("json", "safetensors", "npy", "csv", "tsv", "parquet", "yaml")},
}


def is_packed(ending: str) -> bool:
    """Return whether an extension, without its dot, belongs to a compressed file."""
    return ending in _PACKED


def check_extension(path: str | None, written: str, by: str) -> None:
    """Check that an output's extension does not name a format other than the one that is written.

    Args:
        path: the output, or None for no output; None and streams pass.
        written: the format that is written: jsonl, safetensors or npy.
        by: the option that decides the format, for the message.

    Raises:
        InputError: the extension names another format.
    """
    ending = "" if path is None else os.path.splitext(path)[1].lower().removeprefix(".")
    if path is not None and _FORMAT_OF.get(ending, written) != written and not is_stream(path):
        what, got = "has the extension of another format", f".{ending} with {by}"
        raise InputError(path, what, got=got, expected=f".{written}")


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """Yield a byte stream for an output; a file appears, or is replaced, only if the block ends without an error.

    Raises:
        InputError: the output cannot be opened or, if it is a file, cannot be synced or renamed.
    """
    from lastword.weights.files.atomic import name_write_errors, replace_file

    if not is_stream(path):
        with replace_file(path) as file:
            yield file
        return
    number = _descriptor(path)
    with ExitStack() as files:
        with name_write_errors(path):
            # Unbuffered, so that each error is raised by the write that caused it, and closing writes nothing.
            place = path if number is None else os.dup(number)
            stream = files.enter_context(open(place, "wb", buffering=0))
        yield stream


def _descriptor(path: str) -> int | None:
    """Return the file descriptor that a path such as /dev/fd/1 names, or None for any other path."""
    found = _DESCRIPTOR.fullmatch(path)
    return int(found[1]) if found else _STANDARD.get(path)
