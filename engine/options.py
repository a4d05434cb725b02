"""What a caller may set, checked: each function returns the value in force or raises a ConfigError that names it.

Knows numbers and names, neither models nor devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from lastword.errors import ConfigError, lone_surrogate, some
from lastword.model.postprocess import check_precision

Kind = Literal["query", "document"]
TooLong = Literal["cut", "error"]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """The settings of one call, all resolved: `dim` leading dimensions, scaled to length 1 with `normalize`.

    Raises:   ConfigError for a precision that does not go with `dim` and `ranges`, or an unknown `too_long`.
    """

    prefix: str
    max_length: int
    dim: int
    normalize: bool
    precision: str = "float32"
    ranges: Tensor | None = None
    too_long: str = "cut"

    def __post_init__(self) -> None:
        check_precision(self.precision, self.dim, self.ranges)
        if self.too_long not in ("cut", "error"):
            raise ConfigError(
                f"too_long: unknown; got {self.too_long!r}, expected 'cut' or 'error'."
            )


def check_max_length(
    max_length: int | None, *, default: int, least: int, limit: int, folder: Path
) -> int:
    """Tokens that a text may have: the caller's number or that of the model's files, within what the model takes."""
    length = default if max_length is None else max_length
    if type(length) is int and least <= length <= limit:
        return length
    where, remedy = "max_length", ""
    if max_length is None:
        where = f"{folder}: tokens of a text, by sentence_bert_config.json or tokenizer_config.json"
        remedy = " Set max_length."
    raise ConfigError(
        f"{where}: out of range; got {length!r}, expected {least} to {limit} tokens.{remedy}"
    )


def check_batch_tokens(max_batch_tokens: int | None) -> None:
    """Tokens computed in one forward: at least one where the caller says how many."""
    if max_batch_tokens is None:
        return
    if type(max_batch_tokens) is not int or max_batch_tokens < 1:
        raise ConfigError(
            f"max_batch_tokens: out of range; got {max_batch_tokens!r}, expected 1 or more."
        )


def check_dim(truncate_dim: int | None, size: int) -> int:
    """Leading dimensions to keep: all where the caller does not say."""
    if truncate_dim is None:
        return size
    if type(truncate_dim) is not int or not 1 <= truncate_dim <= size:
        raise ConfigError(
            f"truncate_dim: out of range; got {truncate_dim!r}, expected 1 to {size}."
        )
    return truncate_dim


def check_prompts(prompts: Mapping[str, str] | None) -> Mapping[str, str]:
    """The caller's prompts by name: strings, as those of a checkpoint are."""
    for name, prompt in (prompts or {}).items():
        if not isinstance(prompt, str):
            raise ConfigError(f"prompts: {name!r}; got {prompt!r}, expected a string.")
    return prompts or {}


def check_prompt(prompt: str) -> str:
    """The prefix of one call's texts: a string that a tokenizer takes."""
    if not isinstance(prompt, str):
        raise ConfigError(f"prompt: not a string; got {prompt!r}, expected str.")
    if (at := lone_surrogate(prompt)) is not None:
        raise ConfigError(
            f"prompt: not valid Unicode; got the lone surrogate U+{ord(prompt[at]):04X} at character {at}, "
            "expected text. Decode it with errors='replace' first."
        )
    return prompt


def choose_prompt(
    prompts: Mapping[str, str], name: str | None, default: str | None, kind: Kind | None
) -> str:
    """Find the prefix of that name, else the kind's own or none, else the checkpoint's default or none.

    As in sentence-transformers, a query or document never gets the default prompt.

    Raises:   ConfigError for an unknown name, listing the known ones.
    """
    if name is None and kind is not None:
        return prompts.get(kind, "")
    name = default if name is None else name
    if name is None:
        return ""
    if name not in prompts:
        known = some(prompts) or "none"
        raise ConfigError(f"prompt: unknown name; got {name!r}, expected one of: {known}.")
    return prompts[name]
