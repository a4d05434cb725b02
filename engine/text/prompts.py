"""Check a caller's prompts, and choose the prompt that goes before each text: by name, kind of text, or default."""

from collections.abc import Mapping
from typing import Literal, get_args

from lastword.arguments import is_one_of, short_repr
from lastword.errors import ConfigError, list_some, not_unicode

Kind = Literal["query", "document"]


def check_prompts(prompts: object) -> dict[str, str]:
    """Return a dict from names to prompts, {} if `prompts` is None; raise ConfigError if it does not map str to str."""
    if prompts is None:
        return {}
    if not isinstance(prompts, Mapping):
        got, expected = type(prompts).__name__, "a dict, as in {'query': 'Query: '}"
        raise ConfigError("prompts", "not a dict of prompts", got=got, expected=expected)
    for name, prompt in prompts.items():
        if not (isinstance(name, str) and isinstance(prompt, str)):
            what = "not a string" if isinstance(name, str) else "its name is not a string"
            got = short_repr(prompt if isinstance(name, str) else name)
            raise ConfigError(f"prompts: {short_repr(name)}", what, got=got, expected="str")
    return dict(prompts)


def check_prompt(prompt: object) -> str:
    """Return the prompt of a call; raise ConfigError unless it is a str of valid Unicode."""
    if not isinstance(prompt, str):
        raise ConfigError("prompt", "not a string", got=short_repr(prompt), expected="str")
    if (problem := not_unicode(ConfigError, "prompt", prompt)) is not None:
        raise problem
    return prompt


def check_choice(name: object, kind: object, where: str = "prompt_name") -> None:
    """Raise ConfigError unless `name` is a str or None, and `kind` is "query", "document" or None."""
    if name is not None and not isinstance(name, str):
        raise ConfigError(where, "not a string", got=short_repr(name), expected="str")
    if kind is not None and not is_one_of(kind, get_args(Kind)):
        raise ConfigError("kind", "unknown", got=short_repr(kind), expected="'query' or 'document'")


def choose_prompt(
    prompts: Mapping[str, str], name: str | None, default: str | None, kind: Kind | None
) -> str:
    """Return the prompt called `name`; without a name, the prompt for `kind`; without either, the default prompt.

    As in sentence-transformers, a text with a kind never gets the default prompt.

    Args:
        prompts: all prompts by name.
        name: name of the requested prompt, or None.
        default: name of the default prompt, or None.
        kind: "query" or "document", which is also the name of the prompt for such texts; or None.

    Returns:
        The prompt, or "" if there is none.

    Raises:
        ConfigError: no prompt has the requested or default name. The error lists the known names.
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
