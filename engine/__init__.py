"""lastword: Qwen3 text embeddings that compute only what the last token needs.

Importing this package loads no torch: `Embedder` is fetched at its first use, so that `lastword
--help` and a mere `except lastword.InputError` cost nothing.
"""

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from lastword.errors import ConfigError, DeviceError, InputError, LastwordError, WeightsError

if TYPE_CHECKING:
    from lastword.embedder import Embedder

__all__ = ["ConfigError", "DeviceError", "Embedder", "InputError", "LastwordError", "WeightsError"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import `Embedder`, and torch with it, when somebody asks for it."""
    if name != "Embedder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # torch warns of this at its import; lastword works without NumPy. What else torch does to the filters stays.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)
    ignored = warnings.filters[0]
    try:
        from lastword.embedder import Embedder
    finally:
        with suppress(ValueError):
            warnings.filters.remove(ignored)  # type: ignore[attr-defined]

    globals()[name] = Embedder
    return Embedder


def __dir__() -> list[str]:
    """The public names, whether loaded yet or not."""
    return sorted([*__all__, "__version__"])
