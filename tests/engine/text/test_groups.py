"""Windows of texts: cut by count and by characters, small ones first where a device would wait, nothing lost."""

import pytest

from lastword import InputError
from lastword.text.groups import cut_windows

TEXTS = ["x" * 40] * 100


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_WINDOW_TEXTS", 30), ("_WINDOW_CHARS", 1000), ("_FIRST_CHARS", 100)):
        monkeypatch.setattr(f"lastword.text.groups.{name}", value)


def sizes(texts: list[str], **options: bool) -> list[int]:
    windows = list(cut_windows(iter(texts), **options))
    assert [text for window in windows for text in window] == texts
    return [len(window) for window in windows]


def test_full_by_characters() -> None:
    assert sizes(TEXTS) == [25, 25, 25, 25]


def test_full_by_count() -> None:
    assert sizes([""] * 70) == [30, 30, 10]


def test_the_first_are_small() -> None:
    assert sizes(TEXTS, small_first=True) == [3, 10, 25, 25, 25, 12]


def test_a_text_is_never_cut_and_no_window_is_empty() -> None:
    assert sizes(["y" * 5000, "z", "y" * 5000], small_first=True) == [1, 2]
    assert sizes([]) == []


@pytest.mark.parametrize("small_first", [False, True])
def test_what_is_no_text_fails_after_the_windows_before_it(small_first: bool) -> None:
    windows = cut_windows(iter([*TEXTS[:50], None]), small_first=small_first)
    assert len(next(windows)) == (3 if small_first else 25)
    with pytest.raises(InputError, match="text 50: not a string; got NoneType") as error:
        list(windows)
    assert error.value.index == 50
