"""Read untrusted JSON strictly: check the type and range of every value, report errors in one line.

The files of a checkpoint are untrusted. Duplicate keys, NaN, deep nesting and huge integers are refused here, so the
readers of single files only name the keys that they need. This module does not import torch.
"""

import errno
import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from lastword.errors import ConfigError, LastwordError, WeightsError

# Parsed JSON takes about ten times the memory of its text, so each kind of file has its own limit.
MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_TOKENIZER_BYTES = 256 * 1024 * 1024
MAX_INT = 2**31 - 1
MAX_FLOAT = sys.float_info.max

_FETCH = "The download failed: fetch the model again."
_CONVERT = "Name a folder with the model in the safetensors format."
# How a file begins that is not what its name says, what it is, and the remedy. No JSON begins like one of these.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer", "Run `git lfs pull` in its folder, or fetch the model again."),
    (b"/annex/objects/", "a git-annex pointer", "Run `git annex get` in its folder, or fetch the model again."),
    (b"<", "a web page", _FETCH),
    (b"Entry not found", "the hub's message of an error", _FETCH),
    (b"Invalid username or password", "the hub's message of an error", _FETCH),
    (b"PK\x03\x04", "a zip archive, as torch.save writes it", _CONVERT),
    (b"\x80\x02", "a Python pickle, as torch.save writes it", _CONVERT),
    (b"\x80\x03", "a Python pickle", _CONVERT),
    (b"\x80\x04", "a Python pickle", _CONVERT),
    (b"\x80\x05", "a Python pickle", _CONVERT),
    (b"GGUF", "a GGUF file", _CONVERT),
    (b"\x89HDF", "an HDF5 file", _CONVERT),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
)  # fmt: skip
FOREIGN_BYTES = 512  # the beginning that shows it
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def show_value(value: object, limit: int = 60) -> str:
    """Format a value for an error message: one line of JSON, cut at `limit` characters."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        try:
            text = repr(value)
        except ValueError:  # an integer with more digits than Python converts to text
            text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {show_value(twice)} occurs twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}")


_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_LAST_WINS = json.JSONDecoder(parse_constant=_no_constant)


def parse_json(
    data: bytes | str,
    where: str,
    error: type[LastwordError] = ConfigError,
    *,
    unique_keys: bool = True,
) -> dict[str, Any] | list[Any]:
    """Parse strict JSON whose outermost value is an object or a list.

    Args:
        data: UTF-8 bytes or decoded text.
        where: the source of the data, for error messages.
        error: the type of error to raise.
        unique_keys: refuse an object in which a key occurs twice, instead of using the last value.

    Returns:
        The parsed object or list.

    Raises:
        error: the bytes are not UTF-8 or not JSON, or contain a key twice, NaN, or a bare value.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = (_UNIQUE if unique_keys else _LAST_WINS).decode(text)
    except UnicodeDecodeError as problem:
        raise error(where, f"not UTF-8 at byte {problem.start}") from None
    except RecursionError:
        raise error(where, "not valid JSON (nested too deeply)") from None
    except json.JSONDecodeError as problem:
        line = f"line {problem.lineno}, " if problem.lineno > 1 else ""
        what = problem.msg.removesuffix(" at")  # some of json's own messages end so
        reason = f"{what} at {line}column {problem.colno}"
        raise error(where, f"not valid JSON ({reason})") from None
    except ValueError as problem:
        raise error(where, f"not valid JSON ({problem})") from None
    if not isinstance(value, dict | list):
        raise _no_object(where, error, show_value(value))
    return value


def parse_object(
    data: bytes | str,
    where: str,
    error: type[LastwordError] = ConfigError,
    *,
    unique_keys: bool = True,
) -> dict[str, Any]:
    """Parse strict JSON like `parse_json`, but accept only an object."""
    value = parse_json(data, where, error, unique_keys=unique_keys)
    if not isinstance(value, dict):
        raise _no_object(where, error, "a list")
    return value


def _no_object(where: str, error: type[LastwordError], got: str) -> LastwordError:
    return error(where, "wrong content", got=got, expected="a JSON object")


def unreadable(
    where: str | Path, problem: OSError, error: type[LastwordError] = WeightsError
) -> LastwordError:
    """Create the error for a file that the system cannot read."""
    return error(str(where), f"cannot be read ({problem.strerror or problem})")


def read_bytes(
    path: Path,
    error: type[LastwordError] = ConfigError,
    *,
    remedy: str = "Name a folder that holds the whole model.",
    limit: int = MAX_CONFIG_BYTES,
) -> bytes:
    """Read a whole small regular file, which must not be one of another kind; read at most `limit` bytes.

    Args:
        path: the file.
        error: the type of error for a file that is too large.
        remedy: the advice if the file is missing.
        limit: maximum size in bytes.

    Raises:
        WeightsError: the file is missing, cannot be read, is not a regular file, or holds something else.
        error: the file is larger than `limit`.
    """
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise WeightsError(str(path), "no such file", remedy=remedy) from None
    except OSError as problem:
        raise unreadable(path, problem) from None
    if len(data) > limit:
        raise error(str(path), "too large", expected=f"at most {limit} bytes")
    refuse_foreign(path, data)
    return data


def refuse_foreign(path: Path, start: bytes) -> None:
    """Refuse a file that holds something else than its name says, such as a Git LFS pointer or a web page.

    Args:
        path: the file, for the error message.
        start: its first `FOREIGN_BYTES` or more, or the whole file if it is shorter.

    Raises:
        WeightsError: the file is empty, begins with zeros only, or begins like a file of another kind.
    """
    start = start[:FOREIGN_BYTES]
    if not start:
        raise WeightsError(str(path), "empty", remedy=_FETCH)
    if not any(start):
        raise WeightsError(str(path), "filled with zeros", remedy=_FETCH)
    lead = start.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    for first, kind, remedy in _FOREIGN:
        if lead.startswith(first):
            raise WeightsError(str(path), f"{kind}, not the file itself", remedy=remedy)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never wait for a pipe, never read a device.

    Raises:
        OSError: the file is missing, cannot be opened, or is not a regular file; or no file can have this name.
    """
    try:
        _require_regular(path, os.stat(path).st_mode)  # opening is enough to act on some devices
        # O_NONBLOCK: opening a pipe that nobody writes to would wait. It has no effect on regular files.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except ValueError:  # a null character, or one that the file system cannot encode
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    try:
        _require_regular(
            path, os.fstat(file.fileno()).st_mode
        )  # the name may have been given to another file
    except OSError:
        file.close()
        raise
    return file


def _require_regular(path: Path, mode: int) -> None:
    """Raise OSError for a mode of a file that is not regular, with what it is."""
    if not stat.S_ISREG(mode):
        found = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
        raise OSError(errno.EINVAL, f"it is {found}", str(path))


def read_object(
    path: Path, error: type[LastwordError] = ConfigError, *, limit: int = MAX_CONFIG_BYTES
) -> dict[str, Any]:
    """Read a file that contains one JSON object."""
    return parse_object(read_bytes(path, error, limit=limit), str(path), error)


def read_optional_object(
    path: Path, error: type[LastwordError] = ConfigError
) -> dict[str, Any] | None:
    """Read a file like `read_object`; return None if nothing has this name.

    A link that leads nowhere, as in a damaged hub cache, is an error: settings must not vanish unnoticed.
    """
    return read_object(path, error) if os.path.lexists(path) else None


class Fields:
    """A JSON object and its source; each method reads and checks one value."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def fail(self, key: str, expected: str, remedy: str | None = None) -> NoReturn:
        """Raise the error for a key with a missing or wrong value."""
        where = f"{self.where}: {key}"
        if key not in self.values:
            raise ConfigError(where, "missing", expected=expected, remedy=remedy)
        got = show_value(self.values[key])
        raise ConfigError(where, "wrong value", got=got, expected=expected, remedy=remedy)

    def integer(self, key: str, *, low: int = 1, high: int = MAX_INT) -> int:
        """Read an integer from `low` to `high`; true, 1.0 and "1" are not integers."""
        value = self.values.get(key)
        if type(value) is not int or not low <= value <= high:
            self.fail(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        """Read a finite number greater than `above`; null or absent means `default`, if there is one."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        # Python counts a bool as an int; here it is not a number.
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, f"a finite number above {above:g}")
        if not above < value <= MAX_FLOAT:
            self.fail(key, f"a finite number above {above:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Read true or false; absent means `default`."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        """Read a string; null or absent means `default`."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(key, "a string")
        return value

    def object(self, key: str) -> dict[str, Any] | None:
        """Read a JSON object; null or absent means None."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(key, "a JSON object or null")
        return value
