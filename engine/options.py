"""What a caller may set, checked: a value that is out of range or unknown is a ConfigError that names the setting.

Knows numbers and names, neither models nor devices.
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
QUANTIZE = ("int8", "fp8")


class EncodeKwargs(TypedDict, total=False):
    """What `encode` and its kin take beside texts and prompt.

    Keys:
        precision: float32 (default), float16, int8, uint8, binary or ubinary, see `model.postprocess.quantize`.
        truncate_dim: leading dimensions to keep; the vector is normalised after the cut.
        ranges: [2, dim] for int8 (optional) and uint8.
        too_long: "cut" (default) keeps max_length tokens with the end token, "error" refuses the text.
        normalize_embeddings: length 1 also where the checkpoint does not normalise.
        report: counts are added to it: texts cut, tokens asked for and computed.
        show_progress_bar: default: on a terminal, when the work is long.
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
    """The settings of one call, all resolved.

    Raises:
        ConfigError: an unknown `too_long`.
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
    """Refuse a keyword that the TypedDict does not have, as Python refuses one that a signature does not."""
    for name in given:
        if name not in known.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def check_max_length(
    max_length: int | None, *, default: int, least: int, limit: int, folder: Path
) -> int:
    """Return the maximum number of tokens per text: the caller's or that of the model's files, within the limits."""
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
    """Refuse a number of tokens per batch below one; None is the device's own."""
    if max_batch_tokens is None:
        return
    if type(max_batch_tokens) is not int or max_batch_tokens < 1:
        got = repr(max_batch_tokens)
        raise ConfigError("max_batch_tokens", "out of range", got=got, expected="1 or more")


def check_dim(truncate_dim: int | None, size: int) -> int:
    """Return the number of leading dimensions to keep: all where the caller does not say."""
    if truncate_dim is None:
        return size
    if type(truncate_dim) is not int or not 1 <= truncate_dim <= size:
        got = repr(truncate_dim)
        raise ConfigError("truncate_dim", "out of range", got=got, expected=f"1 to {size}")
    return truncate_dim
