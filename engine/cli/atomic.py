"""A file that appears whole or not at all: written beside its place, synced, then renamed over it.

Whatever ends the writing (an error, a full disk, Ctrl-C), the new file is removed and an old one
stays as it was. Knows nothing about formats.
"""

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from lastword.cli.console import attempt
from lastword.errors import InputError


def refuse_overwriting(inputs: Iterable[str | None], outputs: Iterable[str | None]) -> None:
    """Refuse an output that is also an input, or two outputs in one place; None is no file."""
    used = {os.path.realpath(path) for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in used:
            raise InputError(f"{path}: would be overwritten; name another output file")
        used.add(place)


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """Give a stream for the new content of `path`; leaving the block without error puts it there.

    Raises:   InputError where the folder is missing or closed to us, or where `path` is a folder
              or a device: renaming over a device would take it away.
    """
    target = os.path.realpath(path)  # a link stays a link
    mode = _old_mode(target, path)
    temporary = os.path.join(os.path.dirname(target), f".lastword-{secrets.token_hex(8)}.tmp")
    stream = _create(temporary, path)
    try:
        yield stream
        if mode is not None:
            attempt(lambda: os.fchmod(stream.fileno(), mode), path)
        attempt(stream.flush, path)
        attempt(lambda: os.fsync(stream.fileno()), path)
        stream.close()
        attempt(lambda: os.replace(temporary, target), path)
    except BaseException:
        with suppress(OSError):
            stream.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _old_mode(target: str, path: str) -> int | None:
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be written; {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device or pipe"
        raise InputError(f"{path}: cannot be written; got a {kind}, expected a file name")
    return stat.S_IMODE(mode)


def _create(temporary: str, path: str) -> BinaryIO:
    try:
        return open(temporary, "xb", buffering=1 << 20)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written; its folder: {reason}") from error
