"""The errors a user can meet, all one line: `<where>: <what>; got …, expected …. <remedy>`.

LastwordError
├── ConfigError    a setting of the model or of the call that lastword refuses
├── WeightsError   a checkpoint that is incomplete, damaged or inconsistent
├── InputError     a text, file or argument of the caller
└── DeviceError    a device that is missing or cannot run what was asked

A missing package of an extra is a ConfigError and an ImportError: MissingPackageError.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LastwordError(ValueError):
    """Base of every error that lastword raises on purpose."""


class LastwordWarning(RuntimeWarning):
    """What the user should know and lastword has dealt with: `<setting>: <what>. <remedy>`, one line."""


class ConfigError(LastwordError):
    """A model setting, prompt name or option that lastword does not accept."""


class MissingPackageError(ImportError, ConfigError):
    """A package of an extra that cannot be imported: an ImportError for callers of `import`, too."""


class WeightsError(LastwordError):
    """A checkpoint file that is missing, truncated, misshaped or inconsistent."""


class InputError(LastwordError):
    """A text, record or file of the caller that cannot be embedded; `index` is the text's place in the call."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class DeviceError(LastwordError):
    """A device that is not there or cannot run what was asked."""


def lone_surrogate(text: str) -> int | None:
    """Find the first character that is half of a pair, which no text in UTF-8 holds; None where all is well."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def some(names: Iterable[object], limit: int = 5) -> str:
    """List names in order, cut at `limit`, with the count of those left out."""
    listed = sorted(str(name) for name in names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


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
