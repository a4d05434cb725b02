"""Open and read a model's files, which are untrusted: only regular files, up to a size limit, with fitting content.

If a file is refused, the error says what it seems to be instead, such as a web page, a Git LFS pointer, or a link into
a damaged cache. This module does not import torch.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from lastword.errors import ConfigError, LastwordError, WeightsError

# Parsed JSON takes up to thirty times the memory of its text, so each kind of file has its own limit.
MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_INDEX_BYTES = 16 * 1024 * 1024
MAX_TOKENIZER_BYTES = 256 * 1024 * 1024

_WHOLE = "Name a folder that holds the whole model."
_FETCH = "The download failed: fetch it again."
_CONVERT = "Name a folder with the model in the safetensors format."
# Files that are not what they should be: the first bytes, what the file is, and the remedy. No JSON begins like these.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer", "Run `git lfs pull` in its folder, or fetch it again."),
    (b"/annex/objects/", "a git-annex pointer", "Run `git annex get` in its folder, or fetch it again."),
    (b"<", "a web page", _FETCH),
    (b"Entry not found", "an error message from the hub", _FETCH),
    (b"Invalid username or password", "an error message from the hub", _FETCH),
    (b"PK\x03\x04", "a zip archive, as torch.save writes it", _CONVERT),
    (b"\x80\x02", "a Python pickle, as torch.save writes it", _CONVERT),
    (b"\x80\x03", "a Python pickle", _CONVERT),
    (b"\x80\x04", "a Python pickle", _CONVERT),
    (b"\x80\x05", "a Python pickle", _CONVERT),
    (b"GGUF", "a GGUF file", _CONVERT),
    (b"\x89HDF", "an HDF5 file", _CONVERT),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
)  # fmt: skip
FOREIGN_BYTES = 512  # how many of a file's first bytes are compared with `_FOREIGN`
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never wait for a pipe, and never read a device.

    Raises:
        OSError: the file is missing, cannot be opened, or is not a regular file; or no file can have this name.
    """
    _require_regular(path)  # before the file is opened, because opening alone affects some devices
    # Without O_NONBLOCK, opening a pipe would wait for a writer. On regular files the flag has no effect.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _require_regular(
            file.fileno()
        )  # the name may have been given to another file since the first check
    except OSError:
        file.close()
        raise
    return file


def _require_regular(place: Path | int) -> None:
    """Raise an OSError unless this path or descriptor belongs to a regular file."""
    try:
        mode = os.stat(place).st_mode
    except ValueError:  # a null character, or one that the file system cannot encode
        raise OSError(errno.EINVAL, "no file can have this name") from None
    if not stat.S_ISREG(mode):
        found = next((name for is_kind, name in _KINDS if is_kind(mode)), "not a regular file")
        raise OSError(errno.EINVAL, f"it is {found}")


def read_bytes(
    path: Path,
    error: type[LastwordError] = ConfigError,
    *,
    remedy: str | None = None,
    limit: int = MAX_CONFIG_BYTES,
    markup: bool = False,
) -> bytes:
    """Read a whole regular file of at most `limit` bytes; refuse it if `refuse_foreign` finds something else in it.

    Args:
        path: the file.
        error: the class of the error for a file that is too large.
        remedy: the advice if the file is missing, empty or filled with zeros; None selects the default advice.
        limit: maximum size in bytes.
        markup: whether the file may begin with "<"; if False, such a file is refused as a web page.

    Raises:
        WeightsError: the file is missing, cannot be read, or is not a regular file, or `refuse_foreign` refuses its
            content.
        error: the file is larger than `limit`.
    """
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise missing_file_error(path, remedy or _WHOLE) from None
    except OSError as problem:
        raise read_error(path, problem) from None
    if len(data) > limit:
        raise error(str(path), "too large", expected=f"at most {limit} bytes")
    refuse_foreign(path, data.lstrip(b"<") if markup else data, remedy)
    return data


def refuse_foreign(path: Path, start: bytes, remedy: str | None = None) -> None:
    """Refuse a file that is empty, or is a Git LFS pointer, a web page or the like instead of a model's file.

    Args:
        path: the file, for the error message.
        start: at least the first `FOREIGN_BYTES` bytes of the file, or the whole file if it is shorter.
        remedy: the advice if the file is empty or filled with zeros; None selects the default advice.

    Raises:
        WeightsError: the file is empty, its first bytes are all zero, or it begins like an entry of `_FOREIGN`.
    """
    start = start[:FOREIGN_BYTES]
    if not start:
        raise WeightsError(str(path), "empty", remedy=remedy or _FETCH)
    if not any(start):
        raise WeightsError(str(path), "filled with zeros", remedy=remedy or _FETCH)
    lead = start.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    for first, kind, advice in _FOREIGN:
        if lead.startswith(first):
            raise WeightsError(str(path), f"{kind}, not the file itself", remedy=advice)


def has_file(path: Path) -> bool:
    """Return whether a regular file has this name.

    Raises:
        WeightsError: something else has this name, such as a folder or a link that leads nowhere. Treating the file as
            absent would silently ignore its settings.
    """
    try:
        _require_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        if _dangling_link(path) is not None:
            raise missing_file_error(path) from None
        return False
    except OSError as problem:
        raise read_error(path, problem) from None
    return True


def missing_file_error(path: Path, remedy: str = _WHOLE) -> WeightsError:
    """Create the error for a missing file; if a link on the file's path leads nowhere, the error names that link."""
    link = _dangling_link(path)
    if link is None:
        return WeightsError(str(path), "no such file", remedy=remedy)
    again = "The folder, or the hub's cache, is damaged: fetch the model again."
    return WeightsError(str(link), "a link that leads nowhere", remedy=again)


def _dangling_link(path: Path) -> Path | None:
    for place in (path, *path.parents):
        if os.path.islink(place) and not os.path.exists(place):
            return place
    return None


def read_error(
    where: str | Path, problem: OSError, error: type[LastwordError] = WeightsError
) -> LastwordError:
    """Create the error for a file that cannot be read, with the operating system's reason."""
    return error(str(where), f"cannot be read ({problem.strerror or problem})")
