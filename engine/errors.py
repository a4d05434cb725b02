"""The errors that users see, one line each: `<where>: <what>; got …, expected …. <remedy>`.

LastwordError
├── ConfigError    a setting of the model or of the call that lastword does not accept
├── WeightsError   a checkpoint that is incomplete, damaged or inconsistent
├── InputError     a text, file or argument from the caller that cannot be used
└── DeviceError    a device that is missing or cannot compute as requested

A missing optional package raises MissingPackageError, which is both a ConfigError and an ImportError. The five parts of
a message are attributes, so no code parses a message. Code that knows a better name for the place sets `where`.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class _Problem(Exception):  # noqa: N818  the common base of errors and warnings; never raised itself
    """A problem in five parts, the last three optional; `str` joins them, shortened and escaped, into one line."""

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
        """Store the parts of the message.

        Args:
            where: the setting, file, tensor or text, without a trailing colon.
            what: what is wrong with it, without a full stop.
            got: the value found, formatted for display.
            expected: a description of the correct value.
            remedy: one or more full sentences, each with its full stop.
        """
        super().__init__(where, what)
        self.where, self.what = where, what
        self.got, self.expected, self.remedy = got, expected, remedy

    def __str__(self) -> str:
        named = (("got", self.got), ("expected", self.expected))
        found = ", ".join(f"{name} {one_line(part)}" for name, part in named if part is not None)
        line = f"{one_line(self.where)}: {one_line(self.what)}{'; ' if found else ''}{found}."
        return line if self.remedy is None else f"{line} {one_line(self.remedy)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the attributes, because a worker process sends its errors to its parent process."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[_Problem], args: tuple[Any, ...], parts: dict[str, Any]) -> _Problem:
    problem = kind.__new__(kind, *args)
    problem.args = args
    problem.__dict__.update(parts)
    return problem


class LastwordError(_Problem, ValueError):
    """Base class of all errors that lastword raises deliberately."""


class LastwordWarning(_Problem, RuntimeWarning):
    """A problem that lastword has handled but that the user should know about; one line, like an error."""


class ConfigError(LastwordError):
    """A setting of the model or of the call, such as a prompt name, that lastword does not accept."""


class MissingPackageError(ConfigError, ImportError):
    """An optional package that cannot be imported; also an ImportError, so `except ImportError` catches it."""

    def __init__(self, where: str, what: str, **parts: str | None) -> None:
        super().__init__(where, what, **parts)
        self.msg = str(self)  # an attribute of every ImportError


class WeightsError(LastwordError):
    """A checkpoint file that is missing, truncated, misshaped or inconsistent."""


class InputError(LastwordError):
    """A text, file or argument from the caller that cannot be used.

    The attribute `index` is the position, from 0, of the text in the call; None if the error is not about one text.
    """

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
    """A device that is missing or cannot compute as requested."""


def one_line(text: str, limit: int = 300) -> str:
    """Return `text` on one line of at most `limit` characters: escape control characters, and cut the middle out."""
    cut = _cut(text, limit)
    return cut if cut.isprintable() else _cut(printable(cut), limit)


def _cut(text: str, limit: int) -> str:
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


# Unicode categories of control characters, lone surrogates, and line and paragraph separators.
_UNSAFE = ("Cc", "Cs", "Zl", "Zp")
# Characters after which a terminal may show the rest of a line in another order.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Return `text` on one line, and escape every character that can disturb a terminal; emoji and spaces stay."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if char in _REORDERING or unicodedata.category(char) in _UNSAFE
        else char
        for char in valid_name(text)
    )


def valid_name(name: str) -> str:
    r"""Return a file name as valid Unicode: a byte that is not UTF-8 (a lone surrogate in Python) becomes \xNN."""
    escaped = (
        f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in name
    )
    return "".join(escaped).encode(errors="backslashreplace").decode()


def lone_surrogate(text: str) -> int | None:
    """Return the position of the first lone surrogate, a character that UTF-8 cannot encode; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def not_unicode(kind: type[LastwordError], where: str, text: str) -> LastwordError | None:
    """Return an error of class `kind` if the text contains a lone surrogate, which no tokenizer accepts; else None."""
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


def list_some(names: Iterable[object], limit: int = 5, *, in_order: bool = False) -> str:
    """Join at most `limit` names, as in "a, b and 3 more"; a long name is shortened.

    The names are sorted, unless `in_order` keeps the order given.
    """
    listed = [str(name) for name in names] if in_order else sorted(str(name) for name in names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(one_line(name, 100) for name in listed[:limit]) + more


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, as in "1 text" and "2,000 texts"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def with_article(noun: str) -> str:
    """Return the noun with "a" or "an" before it, chosen by its first letter."""
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def install_hint(extra: str) -> str:
    """Return the sentence that says how to install one of lastword's extras."""
    return f"Install it with: pip install 'lastword[{extra}]'."


@contextmanager
def require_extra(package: str, extra: str, where: str) -> Iterator[None]:
    """Turn an ImportError of the `with` block into a MissingPackageError that says how to install the extra.

    Args:
        package: the package that the block imports.
        extra: the extra of lastword that installs the package.
        where: the feature that needs the package; the first part of the message.

    Raises:
        MissingPackageError: the package, or one of its dependencies, cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise MissingPackageError(
            where, f"needs {package}", got=f"{reason!r} on importing it", remedy=install_hint(extra)
        ) from error
