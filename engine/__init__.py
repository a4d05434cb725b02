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

SPIN_COUNT = (
    "10000"  # of libgomp's loop; about 0.1 ms. Its default of 300,000 is several milliseconds
)


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


def limit_spinning() -> None:
    """Let the threads of a CPU computation wait for each other for microseconds, not milliseconds, before they sleep.

    A thread that waits in a loop takes time from other busy processes, which then keep the thread that it waits for
    from running: beside two of them on two cores, 24 documents took twice as long (bench/LOG.md, 2026-11-30). OpenMP
    reads the variable when torch is imported, so nothing changes after that; nor does it if the user has set a policy.
    """
    import os
    import sys

    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def _import_with_torch(name: str) -> object:
    """Import `Embedder` or `Reranker`.

    torch warns when it is imported without NumPy, but lastword works without it. Only this filter is removed
    afterwards: those that torch adds stay.
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
