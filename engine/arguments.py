"""Check the caller's integers, booleans and arrays, and convert them to types of Python or PyTorch.

The integers, booleans and arrays of NumPy are accepted too. Converting them here keeps fingerprints and messages
independent of NumPy's types.
"""

import operator
import reprlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, Union

import torch
from torch import Tensor

from lastword.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The name of NumPy's type is in quotes, because NumPy is optional and not imported here.
Numbers: TypeAlias = Union[Tensor, "NDArray[Any]", Sequence[Any]]

_LONGEST = 80  # the most characters of a value in a message
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 2, 60, 60, 60


def short_repr(value: object) -> str:
    """Return the repr of a value for a message: one line of at most 80 characters."""
    try:
        text = " ".join(_SHORT.repr(value).splitlines())
    except ValueError:  # an integer with more digits than Python converts to text
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def is_one_of(value: object, names: Collection[str]) -> TypeGuard[str]:
    """Return whether a value is one of the strings `names`; unlike `in`, this accepts arrays and unhashable values."""
    return isinstance(value, str) and value in names


def as_integer(
    value: Any,
    where: str,
    low: int,
    high: int | None = None,
    *,
    expected: str,
    what: str | None = None,
) -> int:
    """Convert an int, a NumPy integer or anything else with `__index__` to an int from `low` to `high`.

    Args:
        value: the caller's value; a bool does not count as an integer here.
        where: the name of the setting.
        low: smallest value allowed.
        high: largest value allowed, None for no limit.
        expected: description of the values allowed, for the message.
        what: for the message, why a value is not accepted; by default "not a whole number" or "out of range".

    Raises:
        ConfigError: the value is not an integer in the range.
    """
    number = None
    if not _is_bool(value) and hasattr(type(value), "__index__"):
        try:
            number = int(operator.index(value))
        except TypeError:  # an array with several elements
            number = None
    if number is None or number < low or (high is not None and number > high):
        wrong = what or ("out of range" if number is not None else "not a whole number")
        raise ConfigError(where, wrong, got=short_repr(value), expected=expected)
    return number


def as_switch(value: object, where: str) -> bool:
    """Convert True, False, 1, 0 or a bool of NumPy or PyTorch to a bool.

    Raises:
        ConfigError: the value is anything else, such as the str "false".
    """
    if _is_bool(value):
        return bool(value)
    expected = "True or False"
    return bool(as_integer(value, where, 0, 1, expected=expected, what="neither True nor False"))


def _is_bool(value: object) -> bool:
    """Return whether a value is a bool of Python, or a single bool of NumPy or PyTorch."""
    if isinstance(value, bool):
        return True
    return str(getattr(value, "dtype", "")).endswith("bool") and getattr(value, "shape", None) == ()


def as_numbers(values: Any) -> Tensor | None:
    """Convert a tensor, an array, or nested lists of these or of numbers to an fp32 tensor.

    Returns:
        An fp32 tensor, on the device of the given tensors, or on the CPU if none was given. None if the values cannot
        be converted; complex numbers and sparse tensors never are.
    """
    try:
        if isinstance(values, list | tuple) and any(hasattr(each, "shape") for each in values):
            rows: list[Any] = [as_numbers(each) for each in values]
            return torch.stack(rows)  # a TypeError if a row is None
        if "complex" in str(getattr(values, "dtype", "")):
            return None
        if isinstance(values, Tensor):
            return values.float() if values.layout == torch.strided else None
        writable = getattr(getattr(values, "flags", None), "writeable", True)
        if not writable or min(getattr(values, "strides", ()), default=0) < 0:
            # PyTorch warns about an array that it cannot write to, and cannot read one with negative strides.

            values = values.copy()
        return torch.as_tensor(values, dtype=torch.float32, device="cpu")
    except (RuntimeError, TypeError, ValueError, OverflowError):
        return None
