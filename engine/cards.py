"""Whose model card: the hub id that a model's name, or a folder that bears it, stands for.

Knows names only; what the cards print lies with `verify` and `evaluate`, which compare it.
"""

from collections.abc import Collection, Mapping
from typing import TypeVar

from lastword.errors import ConfigError, some
from lastword.weights import expanded

T = TypeVar("T")


def known_name(model: str, known: Collection[str]) -> str:
    """Give the hub id among `known` that a hub id or an existing folder bears, else `model` as it is."""
    folder = expanded(model)
    own = folder.absolute().name.lower() if folder.is_dir() else None
    for name in known:
        if model.lower() == name.lower() or own == name.lower().split("/")[1]:
            return name
    return model


def find_card(model: str, cards: Mapping[str, T], absent: str) -> T:
    """Find a model's card, by hub id or by the folder's name.

    Raises:   ConfigError where none is known; `absent` begins its message, as "card: no table" does.
    """
    name = known_name(model, cards)
    if name not in cards:
        raise ConfigError(
            f"{absent} is known for {model!r}; expected one of: {some(cards)}. "
            "Where MODEL does not say which, name it with --as (in Python known_as)."
        )
    return cards[name]
