"""lastword: Qwen3 text embeddings and reranking, computing only what each text's last token needs.

Importing this package does not import torch: `Embedder` and `Reranker` are loaded on first use. `lastword --help`, or
code that only catches `lastword.InputError`, therefore starts quickly.
"""

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from lastword.errors import ConfigError, DeviceError, InputError, LastwordError, WeightsError

if TYPE_CHECKING:
    from lastword.embedder import Embedder
    from lastword.reranker import Reranker

__all__ = [
    "ConfigError",
    "DeviceError",
    "Embedder",
    "InputError",
    "LastwordError",
    "Reranker",
    "WeightsError",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import `Embedder` or `Reranker`, and torch with it, on first access."""
    if name not in ("Embedder", "Reranker"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # torch warns about this when imported, but lastword works without NumPy. Only this filter is removed afterwards:
    # those that torch adds stay.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)
    ignored = warnings.filters[0]
    try:
        from importlib import import_module

        found: object = getattr(import_module(f"lastword.{name.lower()}"), name)
    finally:
        with suppress(ValueError):
            warnings.filters.remove(ignored)  # type: ignore[attr-defined]

    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, including those not loaded yet."""
    return sorted([*__all__, "__version__"])
