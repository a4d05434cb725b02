"""Choose the prompt to put before every text of a call: given directly, by name, or the default of its kind."""

from collections.abc import Mapping
from typing import Literal

from lastword.errors import ConfigError, list_some, not_unicode

Kind = Literal["query", "document"]


def check_prompts(prompts: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the caller's prompts by name ({} for None); ConfigError if one is not a str."""
    for name, prompt in (prompts or {}).items():
        if not isinstance(prompt, str):
            raise ConfigError(
                f"prompts: {name!r}", "not a string", got=repr(prompt), expected="str"
            )
    return prompts or {}


def check_prompt(prompt: str) -> str:
    """Return the prompt of one call; ConfigError if it is not a str of valid Unicode."""
    if not isinstance(prompt, str):
        raise ConfigError("prompt", "not a string", got=repr(prompt), expected="str")
    if (problem := not_unicode(ConfigError, "prompt", prompt)) is not None:
        raise problem
    return prompt


def choose_prompt(
    prompts: Mapping[str, str], name: str | None, default: str | None, kind: Kind | None
) -> str:
    """Return the prompt called `name`; without a name, the one of the kind, or the default if there is no kind.

    As in sentence-transformers, a query or document never gets the default prompt.

    Args:
        prompts: all prompts by name.
        name: name of the requested prompt.
        default: name of the checkpoint's default prompt.
        kind: "query" or "document", whose prompt has the same name.

    Returns:
        The prompt, or "" if there is none.

    Raises:
        ConfigError: the name is unknown; the known ones are listed.
    """
    if name is None and kind is not None:
        return prompts.get(kind, "")
    name = default if name is None else name
    if name is None:
        return ""
    if name not in prompts:
        known = list_some(prompts) or "none"
        raise ConfigError("prompt", "unknown name", got=repr(name), expected=f"one of: {known}")
    return prompts[name]
