"""Errors in five parts: one line, uniform punctuation, pickled and copied whole; a missing package and its remedy."""

import pickle
from copy import copy
from unicodedata import category

import pytest

from lastword.errors import (
    ConfigError,
    DeviceError,
    InputError,
    LastwordError,
    LastwordWarning,
    MissingPackageError,
    WeightsError,
    count,
    list_some,
    not_unicode,
    require_extra,
)

PARTS = ("where", "what", "got", "expected", "remedy")
KINDS = [ConfigError, DeviceError, InputError, LastwordWarning, MissingPackageError, WeightsError]


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({}, "a: b."),
        ({"got": "1"}, "a: b; got 1."),
        ({"expected": "2"}, "a: b; expected 2."),
        ({"got": "1", "expected": "2"}, "a: b; got 1, expected 2."),
        ({"remedy": "Do it."}, "a: b. Do it."),
        ({"got": "", "expected": "2", "remedy": "Do it."}, "a: b; got , expected 2. Do it."),
    ],
)
def test_one_line_and_one_punctuation(parts: dict[str, str], line: str) -> None:
    assert str(ConfigError("a", "b", **parts)) == line


UNSAFE = {"Cc", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["x" * 10**6, "\u202e" * 400, "a\nb\r\x1b\u2028\x85", "\U000e0001" * 10**5, "\ud800"]
)
def test_whatever_the_parts_a_message_is_one_short_line(kind: type, text: str) -> None:
    for number in range(len(PARTS)):
        parts = ["a", "b", "1", "2", "Do it."]
        parts[number] = text
        where, what, *others = parts
        error = kind(where, what, **dict(zip(PARTS[2:], others, strict=True)))
        assert not UNSAFE & set(map(category, str(error)))
        assert len(str(error)) < 350
        assert getattr(error, PARTS[number]) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [lambda error: pickle.loads(pickle.dumps(error)), copy])
def test_all_parts_survive(kind: type, how) -> None:
    given = {"got": "1", "expected": "2", "remedy": "Do it."}
    error = kind("a", "b", **given, **({"index": 3} if kind is InputError else {}))
    error.add_note("seen on the way")
    again = how(error)
    assert type(again) is kind
    assert [getattr(again, name) for name in PARTS] == ["a", "b", "1", "2", "Do it."]
    assert again.__dict__ == error.__dict__
    assert str(again) == str(error)


def test_where_can_be_replaced() -> None:
    error = InputError("text 3", "too long", index=3)
    error.where = "notes.txt:4"
    assert str(error) == "notes.txt:4: too long."


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], ""),
        (["b", "a"], "a, b"),
        (range(7), "0, 1, 2, 3, 4 and 2 more"),
        (["x" * 10**6, "a\nb"], "a\\nb, " + "x" * 49 + "…" + "x" * 49),
    ],
)
def test_lists_are_short(names, line: str) -> None:
    assert list_some(names) == line


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not LastwordWarning])
def test_errors_are_value_errors(kind: type) -> None:
    assert issubclass(kind, LastwordError)
    assert issubclass(kind, ValueError)


def test_a_lone_surrogate_is_named() -> None:
    error = not_unicode(ConfigError, "prompt", "ab\ud83d")
    assert type(error) is ConfigError
    assert error.got == "the lone surrogate U+D83D at character 2"
    assert not_unicode(ConfigError, "prompt", "ab\U0001f600") is None


@pytest.mark.parametrize("kind", [ImportError, ConfigError])
@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        pytest.param("No module named 'mteb'", "No module named 'mteb'", id="missing"),
        pytest.param("cannot import name 'x'\nand more", "cannot import name 'x'", id="broken"),
    ],
)
def test_a_failed_import_is_one_line(kind: type, reason: str, shown: str) -> None:
    with pytest.raises(kind) as caught, require_extra("mteb", "eval", "here"):
        raise ImportError(reason)
    assert type(caught.value) is MissingPackageError
    assert caught.value.where == "here"
    expected = (
        f"here: needs mteb; got {shown!r} on importing it. Install it with: pip install "
        "'lastword[eval]'."
    )
    assert str(caught.value) == caught.value.msg == expected


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), require_extra("mteb", "eval", "here"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("number", "line"), [(0, "0 texts"), (1, "1 text"), (2, "2 texts"), (2000, "2,000 texts")]
)
def test_a_number_with_its_noun(number: int, line: str) -> None:
    assert count(number, "text") == line
