"""Read untrusted JSON strictly: check the type and range of every value, and report errors in one line.

The files of a checkpoint are untrusted. Duplicate keys, NaN, deep nesting and huge integers are refused here, so the
modules that read particular files need not check for them. This module does not import torch.
"""

import json
import reprlib
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NoReturn

from lastword.errors import ConfigError, LastwordError, list_some
from lastword.weights.files.reading import MAX_CONFIG_BYTES, has_file, read_bytes

MAX_INT = 2**31 - 1
MAX_FLOAT = sys.float_info.max

UNKNOWN = "They might change the vectors, so they are not supported. If they do not, remove them from the file."
NOT_SUPPORTED = "Other values are not supported. Name another model."


def show_value(value: object, limit: int = 60) -> str:
    """Format a value for an error message: one line of JSON of at most `limit` characters, cut if it is longer."""
    text = ""
    for piece in _pieces(value, limit):
        text += piece
        if len(text) > limit:
            return text[: limit - 1] + "…"
    return text


def _pieces(value: object, limit: int) -> Iterator[str]:
    """Yield the text of a value piece by piece; strings are cut at `limit` characters."""
    if isinstance(value, dict):
        for number, (key, each) in enumerate(value.items()):
            yield ", " if number else "{"
            yield from _pieces(key, limit)
            yield ": "
            yield from _pieces(each, limit)
        yield "}" if value else "{}"
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield ", " if number else "["
            yield from _pieces(each, limit)
        yield "]" if value else "[]"
    elif isinstance(value, str):
        yield json.dumps(value[:limit])
    elif isinstance(value, bytes):
        yield repr(value[:limit])
    elif value is None or isinstance(value, bool | float):
        yield json.dumps(value)
    else:
        try:
            text = str(value) if isinstance(value, int) else reprlib.repr(value)
        except ValueError:  # an integer with more digits than Python converts to text
            text = f"a huge {type(value).__name__}"
        yield text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {show_value(name)} occurs twice")
            seen.add(name)
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"it contains {text}")


# Messages of Python's `json`, each with its meaning in plain words; a message that is not listed is shown unchanged.
_PROBLEMS = {
    "Expecting ',' delimiter": "a comma or a closing bracket is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Expecting property name enclosed in double quotes": "a name in double quotes is missing",
    "Expecting value": "a value is missing",
    "Extra data": "something follows after the end",
    "Illegal trailing comma before end of array": "a comma before the closing bracket",
    "Illegal trailing comma before end of object": "a comma before the closing bracket",
    "Invalid \\escape": "a backslash before a character that needs none",
    "Invalid \\uXXXX escape": "\\u without four hexadecimal digits",
    "Invalid control character": "a control character that is not escaped",
    "Unterminated string starting": "a string has no closing quote",
}
_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def parse_json(
    data: bytes | str, where: str, error: type[LastwordError] = ConfigError
) -> dict[str, Any] | list[Any]:
    """Parse strict JSON whose outermost value is an object or a list.

    Args:
        data: UTF-8 bytes or decoded text.
        where: the source of the data, for error messages.
        error: the class of the error to raise.

    Returns:
        The parsed object or list.

    Raises:
        error: the data is not UTF-8 or not JSON, has a duplicate key, NaN or Infinity, or is neither an object nor a
            list.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = _STRICT.decode(text)
    except UnicodeDecodeError as problem:
        what = f"not UTF-8 at byte {problem.start}"
        found = "UTF-16" if problem.object[:2] in (b"\xff\xfe", b"\xfe\xff") else None
        raise error(where, what, got=found, remedy=found and "Save it as UTF-8.") from None
    except RecursionError:
        raise error(where, "not valid JSON (nested too deeply)") from None
    except json.JSONDecodeError as problem:
        if text.startswith("\ufeff"):
            what = "begins with a byte order mark"
            raise error(where, what, remedy="Save it as UTF-8 without one.") from None
        line = f"line {problem.lineno}, " if problem.lineno > 1 else ""
        what = problem.msg.removesuffix(" at")  # some of json's messages end with this
        reason = f"{line}column {problem.colno}: {_PROBLEMS.get(what, what)}"
        raise error(where, f"not valid JSON ({reason})") from None
    except ValueError as problem:
        reason = str(problem)
        if reason.startswith("Exceeds the limit"):  # Python's message for integers
            reason = "an integer has too many digits"
        no_number = reason.startswith("it contains")
        remedy = "JSON has no such number: write null instead." if no_number else None
        raise error(where, f"not valid JSON ({reason})", remedy=remedy) from None
    if not isinstance(value, dict | list):
        raise _no_object(where, error, show_value(value))
    return value


def parse_object(
    data: bytes | str, where: str, error: type[LastwordError] = ConfigError
) -> dict[str, Any]:
    """Parse strict JSON like `parse_json`, but accept only an object."""
    value = parse_json(data, where, error)
    if not isinstance(value, dict):
        raise _no_object(where, error, "a list")
    return value


def _no_object(where: str, error: type[LastwordError], got: str) -> LastwordError:
    return error(where, "wrong content", got=got, expected="a JSON object")


def read_object(
    path: Path, error: type[LastwordError] = ConfigError, *, limit: int = MAX_CONFIG_BYTES
) -> dict[str, Any]:
    """Read a file that contains one JSON object; arguments and errors are as for `read_bytes` and `parse_object`."""
    return parse_object(read_bytes(path, error, limit=limit), str(path), error)


def read_optional_object(
    path: Path, error: type[LastwordError] = ConfigError
) -> dict[str, Any] | None:
    """Read a file like `read_object`, or return None if there is no such file.

    A link that leads nowhere, as in a damaged hub cache, is an error, because ignoring it would lose settings.
    """
    return read_object(path, error) if has_file(path) else None


class Fields:
    """A JSON object, and its source for error messages. Each reading method takes a key and checks the key's value."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def fail(self, key: str, expected: str, remedy: str | None = None) -> NoReturn:
        """Raise a ConfigError that says that a key is missing or that its value is wrong."""
        where = f"{self.where}: {key}"
        if key not in self.values:
            raise ConfigError(where, "missing", expected=expected, remedy=remedy)
        got = show_value(self.values[key])
        raise ConfigError(where, "wrong value", got=got, expected=expected, remedy=remedy)

    def refuse_unknown(self, known: AbstractSet[str], remedy: str = UNKNOWN) -> None:
        """Raise a ConfigError if the object has a key that is not in `known`: an ignored setting might matter."""
        unknown = self.values.keys() - known
        if unknown:
            raise ConfigError(self.where, f"unknown settings: {list_some(unknown)}", remedy=remedy)

    def only(self, key: str, *allowed: object, remedy: str = NOT_SUPPORTED) -> None:
        """Raise a ConfigError unless the key is absent or its value is one of `allowed`.

        The message states the first allowed value as the expected one.
        """
        value = self.values.get(key)
        # Compare the types too, because in Python 0 equals False.
        if key in self.values and not any(type(v) is type(value) and v == value for v in allowed):
            self.fail(key, show_value(allowed[0]), remedy)

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
        # In Python a bool is an int; here it is not a number.
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
