"""Strict reading of JSON that somebody else wrote: one-line errors, every value's type and range checked.

The files of a checkpoint are untrusted. Duplicate keys, NaN, deep nesting and huge integers are refused here,
so that the readers of the single files only say which keys they want. Imports no torch.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from lastword.errors import ConfigError, LastwordError, WeightsError

MAX_JSON_BYTES = 256 * 1024 * 1024
MAX_INT = 2**31 - 1
MAX_FLOAT = sys.float_info.max


def shown(value: object, limit: int = 60) -> str:
    """Show a value in an error message as one line of JSON, cut at `limit` characters."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        try:
            text = repr(value)
        except ValueError:  # an integer of more digits than Python writes out
            text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {shown(twice)} occurs twice")
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
        data: UTF-8, or text already decoded.
        where: it came from.
        error: what is raised.
        unique_keys: refuse an object that has a key twice, instead of taking the last one.

    Raises:
        error: the bytes are not UTF-8, not JSON, hold a key twice, NaN, or a bare value.
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
        reason = f"{problem.msg} at {line}column {problem.colno}"
        raise error(where, f"not valid JSON ({reason})") from None
    except ValueError as problem:
        raise error(where, f"not valid JSON ({problem})") from None
    if not isinstance(value, dict | list):
        raise _no_object(where, error, shown(value))
    return value


def parse_object(
    data: bytes | str,
    where: str,
    error: type[LastwordError] = ConfigError,
    *,
    unique_keys: bool = True,
) -> dict[str, Any]:
    """Parse as `parse_json` does, and refuse a list."""
    value = parse_json(data, where, error, unique_keys=unique_keys)
    if not isinstance(value, dict):
        raise _no_object(where, error, "a list")
    return value


def _no_object(where: str, error: type[LastwordError], got: str) -> LastwordError:
    return error(where, "wrong content", got=got, expected="a JSON object")


def unreadable(
    where: str | Path, problem: OSError, error: type[LastwordError] = WeightsError
) -> LastwordError:
    """Make the error of a file that the system does not let us read."""
    return error(str(where), f"cannot be read ({problem.strerror or problem})")


def read_bytes(
    path: Path,
    error: type[LastwordError] = ConfigError,
    *,
    remedy: str = "Name a folder that holds the whole model.",
) -> bytes:
    """Read a small file whole; a missing or unreadable one is a WeightsError that names it."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            most = f"at most {MAX_JSON_BYTES}"
            raise error(str(path), "too large", got=f"{size} bytes", expected=most)
        return path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(str(path), "no such file", remedy=remedy) from None
    except OSError as problem:
        raise unreadable(path, problem) from None


def read_object(path: Path, error: type[LastwordError] = ConfigError) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    return parse_object(read_bytes(path, error), str(path), error)


class Fields:
    """A JSON object and the place it came from; each method takes one value out and checks it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def fail(self, key: str, expected: str, remedy: str | None = None) -> NoReturn:
        """Raise the one-line error for a key whose value is missing or wrong."""
        where = f"{self.where}: {key}"
        if key not in self.values:
            raise ConfigError(where, "missing", expected=expected, remedy=remedy)
        got = shown(self.values[key])
        raise ConfigError(where, "wrong value", got=got, expected=expected, remedy=remedy)

    def integer(self, key: str, *, low: int = 1, high: int = MAX_INT) -> int:
        """Take an integer between `low` and `high`; true, 1.0 and "1" are not integers."""
        value = self.values.get(key)
        if type(value) is not int or not low <= value <= high:
            self.fail(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        """Take a finite number greater than `above`; null or absent means `default` where given."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        # A bool is an int to Python, and no number here.
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, f"a finite number above {above:g}")
        if not above < value <= MAX_FLOAT:
            self.fail(key, f"a finite number above {above:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Take true or false; absent means `default`."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        """Take a string; null or absent means `default`."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(key, "a string")
        return value

    def object(self, key: str) -> dict[str, Any] | None:
        """Take a JSON object; null or absent means None."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(key, "a JSON object or null")
        return value
