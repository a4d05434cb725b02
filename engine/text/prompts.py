"""Which prompt goes before every text of a call: the caller's own, one by name, or the default of its kind."""

from collections.abc import Mapping
from typing import Literal

from lastword.errors import ConfigError, not_unicode, some

Kind = Literal["query", "document"]


def check_prompts(prompts: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the caller's prompts by name: strings, as those of a checkpoint are."""
    for name, prompt in (prompts or {}).items():
        if not isinstance(prompt, str):
            raise ConfigError(
                f"prompts: {name!r}", "not a string", got=repr(prompt), expected="str"
            )
    return prompts or {}


def check_prompt(prompt: str) -> str:
    """Return the prompt of one call: a string that a tokenizer takes."""
    if not isinstance(prompt, str):
        raise ConfigError("prompt", "not a string", got=repr(prompt), expected="str")
    if (problem := not_unicode(ConfigError, "prompt", prompt)) is not None:
        raise problem
    return prompt


def choose_prompt(
    prompts: Mapping[str, str], name: str | None, default: str | None, kind: Kind | None
) -> str:
    """Find the prompt of that name, else the kind's own or none, else the checkpoint's default or none.

    As in sentence-transformers, a query or document never gets the default prompt.

    Raises:
        ConfigError: an unknown name; the known ones are listed.
    """
    if name is None and kind is not None:
        return prompts.get(kind, "")
    name = default if name is None else name
    if name is None:
        return ""
    if name not in prompts:
        known = some(prompts) or "none"
        raise ConfigError("prompt", "unknown name", got=repr(name), expected=f"one of: {known}")
    return prompts[name]
