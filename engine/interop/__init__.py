"""Adapters for libraries that take an embedding model: LangChain and LlamaIndex.

Entry points: each file imports its library, which must be installed, and calls `Embedder` alone. What they have in
common is here: the model that an adapter is given.
"""

import os
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import ConfigError, some

__all__ = ["embedder_of"]


def embedder_of(
    model: str | os.PathLike[str] | Embedder | None, options: dict[str, Any]
) -> Embedder:
    """Give the Embedder itself, so that several adapters can share it, or open one with `options`.

    Raises:
        ConfigError: options come with an Embedder, which has its own.
    """
    if not isinstance(model, Embedder):
        return Embedder(model, **options)
    if options:
        raise ConfigError(
            "model",
            "an Embedder has its own options",
            got=f"an Embedder and options ({some(options)})",
            expected="options with a name or folder only",
        )
    return model
