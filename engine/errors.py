"""The errors a user can meet, each one line: `<where>: <what>; got …, expected …. <remedy>`.

LastwordError
├── ConfigError    a setting of the model or of the call that lastword refuses
├── WeightsError   a checkpoint that is incomplete, damaged or inconsistent
├── InputError     a text, file or argument of the caller
└── DeviceError    a device that is missing or cannot run what was asked

A missing package of an extra is a ConfigError and an ImportError: MissingPackageError. Nothing parses a message: the
five parts are attributes, and whoever knows a better name for the place replaces `where`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class _Problem(Exception):  # noqa: N818  the common half of errors and warnings, never raised itself
    """A problem in five parts, of which the last three may be absent; `str` puts them into one line."""

    where: str
    what: str
    got: str | None
    expected: str | None
    remedy: str | None

    def __init__(
        self,
        where: str,
        what: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        """Take the parts as they will be read.

        Args:
            where: the setting, file, tensor or text, without a colon after it.
            what: what is wrong with it, without a full stop.
            got: what was found, as it is to be shown.
            expected: what would be right.
            remedy: one or more whole sentences, each with its full stop.
        """
        super().__init__(where, what)
        self.where, self.what = where, what
        self.got, self.expected, self.remedy = got, expected, remedy

    def __str__(self) -> str:
        named = (("got", self.got), ("expected", self.expected))
        found = ", ".join(f"{name} {part}" for name, part in named if part is not None)
        line = f"{self.where}: {self.what}{'; ' if found else ''}{found}."
        return line if self.remedy is None else f"{line} {self.remedy}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the attributes: a worker process sends its errors so."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[_Problem], args: tuple[Any, ...], parts: dict[str, Any]) -> _Problem:
    problem = kind.__new__(kind, *args)
    problem.args = args
    problem.__dict__.update(parts)
    return problem


class LastwordError(_Problem, ValueError):
    """Base of every error that lastword raises on purpose."""


class LastwordWarning(_Problem, RuntimeWarning):
    """Something the user should know and lastword has dealt with; one line, as an error's."""


class ConfigError(LastwordError):
    """A model setting, prompt name or option that lastword does not accept."""


class MissingPackageError(ConfigError, ImportError):
    """A package of an extra that cannot be imported: an ImportError for callers of `import`, too."""

    def __init__(self, where: str, what: str, **parts: str | None) -> None:
        super().__init__(where, what, **parts)
        self.msg = str(self)  # an ImportError's own


class WeightsError(LastwordError):
    """A checkpoint file that is missing, truncated, misshaped or inconsistent."""


class InputError(LastwordError):
    """A text, record or file of the caller that cannot be embedded; `index` is the text's place in the call."""

    def __init__(
        self,
        where: str,
        what: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(where, what, got=got, expected=expected, remedy=remedy)
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


def not_unicode(kind: type[LastwordError], where: str, text: str) -> LastwordError | None:
    """Make the error of a text with a lone surrogate, which no tokenizer takes; None where all is well."""
    at = lone_surrogate(text)
    if at is None:
        return None
    return kind(
        where,
        "not valid Unicode",
        got=f"the lone surrogate U+{ord(text[at]):04X} at character {at}",
        expected="text",
        remedy="Decode it with errors='replace' first.",
    )


def some(names: Iterable[object], limit: int = 5) -> str:
    """List names in order, cut at `limit`, with the count of those left out."""
    listed = sorted(str(name) for name in names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def install(extra: str) -> str:
    """Say how to install an extra."""
    return f"Install it with: pip install 'lastword[{extra}]'."


@contextmanager
def needing(package: str, extra: str, where: str) -> Iterator[None]:
    """Import `package` within; where that fails, say that `where` needs it and how to install its extra.

    Raises:
        MissingPackageError: the package, or one that it needs, cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise MissingPackageError(
            where, f"needs {package}", got=f"{reason!r} at its import", remedy=install(extra)
        ) from error
