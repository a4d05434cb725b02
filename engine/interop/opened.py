"""What an adapter is given as its model: an Embedder that is there already, or what to open."""

import os
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import ConfigError, some


def opened(model: str | os.PathLike[str] | Embedder | None, options: dict[str, Any]) -> Embedder:
    """Give the Embedder itself, so that several adapters can share it, or open one with `options`.

    Raises:   ConfigError where options come with an Embedder, which has its own.
    """
    if not isinstance(model, Embedder):
        return Embedder(model, **options)
    if options:
        raise ConfigError(
            f"model: got an Embedder and options ({some(options)}); expected options with a name or folder only."
        )
    return model
