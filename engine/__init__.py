"""lastword: Qwen3 text embeddings and reranking, computing only what each text's last token needs.

Importing this package imports nothing else: each public name is loaded on first use. `lastword --help`, or code that
only catches `lastword.InputError`, therefore does not wait for torch, and Ctrl-C is answered from the start.
"""

TYPE_CHECKING = False  # type checkers take it as True; the module `typing` is slow to import
if TYPE_CHECKING:
    from lastword.embedder import Embedder
    from lastword.errors import ConfigError, DeviceError, InputError, LastwordError, WeightsError
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
    """Import a public name on first access, `Embedder` and `Reranker` with torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name not in ("Embedder", "Reranker"):
        found: object = getattr(import_module("lastword.errors"), name)
    else:
        found = _import_with_torch(name)
    globals()[name] = found
    return found


def _import_with_torch(name: str) -> object:
    """Import `Embedder` or `Reranker`.

    torch warns when it is imported without NumPy, but lastword works without it. Only this filter is removed
    afterwards: those that torch adds stay.
    """
    import warnings
    from contextlib import suppress
    from importlib import import_module

    warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)
    ignored = warnings.filters[0]
    try:
        return getattr(import_module(f"lastword.{name.lower()}"), name)
    finally:
        with suppress(ValueError):
            warnings.filters.remove(ignored)  # type: ignore[attr-defined]


def __dir__() -> list[str]:
    """List the public names, including those not loaded yet."""
    return sorted([*__all__, "__version__"])
