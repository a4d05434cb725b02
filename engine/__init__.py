"""lastword: Qwen3 text embeddings and reranking. Prefixes shared by several texts are computed only once.

Importing this package imports no other module: each public name is imported on first use. So `lastword --help`, or
code that only catches `lastword.InputError`, does not wait for torch, and Ctrl-C works from the start.
"""

TYPE_CHECKING = False  # type checkers take this as True; importing it from `typing` would be slow
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

# Rounds of libgomp's waiting loop before a thread sleeps: about 0.1 ms. The default, 300,000, takes several ms.
SPIN_COUNT = "10000"


def __getattr__(name: str) -> object:
    """Import a public name on first access. Only `Embedder` and `Reranker` import torch too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name not in ("Embedder", "Reranker"):
        found: object = getattr(import_module("lastword.errors"), name)
    else:
        found = _import_with_torch(name)
    globals()[name] = found
    return found


def limit_spinning() -> None:
    """Make waiting threads of a CPU computation sleep after about 0.1 ms, instead of several milliseconds.

    Until a waiting thread sleeps, it spins: it occupies a core, so other processes, and the very thread that it waits
    for, get less time. Beside two busy processes on two cores, embedding 24 documents took 4.8 s because of this, and
    2.7 s without it (bench/LOG.md, 2026-11-30). OpenMP reads GOMP_SPINCOUNT when torch is imported, so this function
    does nothing after that. It also does nothing if the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT.
    """
    import os
    import sys

    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def _import_with_torch(name: str) -> object:
    """Import `Embedder` or `Reranker`.

    torch warns on import if NumPy is missing. lastword does not need NumPy, so a filter hides this warning during the
    import. Afterwards only that filter is removed: the filters that torch itself has added stay.
    """
    import warnings
    from contextlib import suppress
    from importlib import import_module

    limit_spinning()
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
