"""A package that is missing or broken is one line that says what to install."""

import pytest

from lastword.errors import ConfigError, MissingPackageError, needing


@pytest.mark.parametrize("kind", [ImportError, ConfigError])
@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        pytest.param("No module named 'mteb'", "No module named 'mteb'", id="missing"),
        pytest.param("cannot import name 'x'\nand more", "cannot import name 'x'", id="broken"),
    ],
)
def test_a_failed_import_is_one_line(kind: type, reason: str, shown: str) -> None:
    with pytest.raises(kind) as caught, needing("mteb", "eval", "here"):
        raise ImportError(reason)
    assert type(caught.value) is MissingPackageError
    expected = f"here: needs mteb; {shown}. Install it with: pip install 'lastword[eval]'"
    assert str(caught.value) == caught.value.msg == expected


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), needing("mteb", "eval", "here"):
        raise ZeroDivisionError
