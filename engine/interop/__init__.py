"""Adapters for libraries that use an embedding model: LangChain and LlamaIndex.

Entry points: each module imports its library, which must be installed, and uses the public `Embedder` only. This
module holds the function by which every adapter opens its model.
"""

import os
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import ConfigError, list_some

__all__ = ["embedder_of"]


def embedder_of(
    model: str | os.PathLike[str] | Embedder | None, options: dict[str, Any]
) -> Embedder:
    """Return `model` if it is an Embedder, so that several adapters can share one; else open it with `options`.

    Args:
        model: Hugging Face id, folder, or an Embedder; None is the small built-in model.
        options: options of `Embedder`; none if `model` is an Embedder.

    Raises:
        ConfigError: options are given together with an Embedder.
    """
    if not isinstance(model, Embedder):
        return Embedder(model, **options)
    if options:
        raise ConfigError(
            "model",
            "an Embedder already has its options",
            got=f"an Embedder and options ({list_some(options)})",
            expected="options with a name or folder only",
        )
    return model
