"""A package of an extra that is missing: said in one way, wherever its feature runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from lastword.errors import ConfigError


class MissingPackageError(ImportError, ConfigError):
    """A package of an extra that cannot be imported: an ImportError for callers of `import`, too."""


def install(extra: str) -> str:
    """Say how to install an extra."""
    return f"Install it with: pip install 'lastword[{extra}]'"


@contextmanager
def needing(package: str, extra: str, where: str) -> Iterator[None]:
    """Import `package` within; where that fails, say that `where` needs it and how to install its extra.

    Raises:   MissingPackageError.
    """
    try:
        yield
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise MissingPackageError(
            f"{where}: needs {package}; {reason}. {install(extra)}"
        ) from error
