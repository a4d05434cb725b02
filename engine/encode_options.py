"""The caller's settings and their checks: a value that is unknown or out of range is a ConfigError naming the setting.

This module knows nothing about models or devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from lastword.errors import ConfigError
from lastword.report import Report

if TYPE_CHECKING:
    from torch import Tensor

    from lastword.model.postprocess import VectorFormat

TooLong = Literal["cut", "error"]
Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


class EncodeKwargs(TypedDict, total=False):
    """Keyword arguments of `encode` and its variants, apart from texts and prompt.

    Args:
        precision: float32 (default), float16, int8, uint8, binary or ubinary; see `model.postprocess.quantize`.
        truncate_dim: number of leading dimensions to keep; the vector is normalised after truncation.
        ranges: [2, dim], the lower and upper bound of each dimension, for int8 (optional) and uint8 (required).
        too_long: "cut" (default) keeps max_length tokens including the end token; "error" rejects the text.
        normalize_embeddings: scale vectors to length 1 even if the checkpoint does not normalise.
        report: counts are added to it, such as texts cut, tokens requested and tokens computed.
        show_progress_bar: by default on a terminal, if the work takes long.
    """

    precision: Precision
    truncate_dim: int | None
    ranges: "Tensor | None"
    too_long: TooLong
    normalize_embeddings: bool
    report: Report | None
    show_progress_bar: bool | None


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """The resolved settings of one call.

    Raises:
        ConfigError: `too_long` is unknown.
    """

    prompt: str
    max_length: int
    format: "VectorFormat"
    too_long: str = "cut"

    def __post_init__(self) -> None:
        if self.too_long not in ("cut", "error"):
            got = repr(self.too_long)
            raise ConfigError("too_long", "unknown", got=got, expected="'cut' or 'error'")


def check_keywords(function: str, given: Mapping[str, object], known: type) -> None:
    """Raise TypeError for a keyword that the TypedDict does not define, as Python does for an unknown argument."""
    for name in given:
        if name not in known.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def check_max_length(
    max_length: int | None, *, default: int, least: int, limit: int, folder: Path
) -> int:
    """Return the maximum number of tokens per text: the caller's value or the model's default, checked.

    Args:
        max_length: the caller's value, None for the default.
        default: the value from the model's files.
        least: smallest value allowed.
        limit: largest value allowed.
        folder: the model's folder, named in an error about the default.

    Raises:
        ConfigError: the value is not an int from `least` to `limit`.
    """
    length = default if max_length is None else max_length
    if type(length) is int and least <= length <= limit:
        return length
    where, remedy = "max_length", None
    if max_length is None:
        where = f"{folder}: tokens per text, by sentence_bert_config.json or tokenizer_config.json"
        remedy = "Set max_length."
    expected = f"{least} to {limit} tokens"
    raise ConfigError(where, "out of range", got=repr(length), expected=expected, remedy=remedy)


def check_batch_tokens(max_batch_tokens: int | None) -> None:
    """Raise ConfigError if the number of tokens per batch is below one; None (the device's default) passes."""
    if max_batch_tokens is None:
        return
    if type(max_batch_tokens) is not int or max_batch_tokens < 1:
        got = repr(max_batch_tokens)
        raise ConfigError("max_batch_tokens", "out of range", got=got, expected="1 or more")


def check_dim(truncate_dim: int | None, size: int) -> int:
    """Return the number of leading dimensions to keep, by default all `size`; ConfigError if out of range."""
    if truncate_dim is None:
        return size
    if type(truncate_dim) is not int or not 1 <= truncate_dim <= size:
        got = repr(truncate_dim)
        raise ConfigError("truncate_dim", "out of range", got=got, expected=f"1 to {size}")
    return truncate_dim
