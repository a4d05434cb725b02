"""Strict reading of JSON files that somebody else wrote: one-line errors, every value's type and range checked.

The files of a checkpoint are untrusted. Duplicate keys, NaN, deep nesting and huge integers are refused here,
so that the readers of the single files only say which keys they want.
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
    raise ValueError(f"{text} is not JSON")


def parse_json(data: bytes, where: str, error: type[LastwordError]) -> dict[str, Any] | list[Any]:
    """Parse strict UTF-8 JSON whose outermost value is an object or a list.

    Raises:
        error: the bytes are not UTF-8, not JSON, hold a key twice, NaN, or a bare value.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not UTF-8 at byte {problem.start}") from None
    except RecursionError:
        raise error(f"{where}: not valid JSON; nested too deeply") from None
    except ValueError as problem:
        raise error(f"{where}: not valid JSON; {problem}".replace("\n", " ")) from None
    if not isinstance(value, dict | list):
        raise error(f"{where}: got {shown(value)}, expected a JSON object")
    return value


def read_bytes(
    path: Path,
    error: type[LastwordError] = ConfigError,
    *,
    remedy: str = "Name a folder that holds the whole model",
) -> bytes:
    """Read a small file whole; a missing or unreadable one is a WeightsError that names it."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error(f"{path}: {size} bytes, expected at most {MAX_JSON_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file. {remedy}") from None
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read; {problem.strerror}") from None


def read_object(path: Path, error: type[LastwordError] = ConfigError) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    value = parse_json(read_bytes(path, error), str(path), error)
    if not isinstance(value, dict):
        raise error(f"{path}: got a list, expected a JSON object")
    return value


class Fields:
    """A JSON object and the place it came from; each method takes one value out and checks it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def fail(self, key: str, expected: str, remedy: str = "") -> NoReturn:
        """Raise the one-line error for a key whose value is missing or wrong."""
        if key not in self.values:
            raise ConfigError(f"{self.where}: {key} is missing, expected {expected}.{remedy}")
        got = shown(self.values[key])
        raise ConfigError(f"{self.where}: {key}; got {got}, expected {expected}.{remedy}")

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
