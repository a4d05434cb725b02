"""Groups of texts: split by count and by characters, small ones first if a device would wait, nothing lost."""

import pytest

from lastword import InputError
from lastword.text.groups import split_into_groups

TEXTS = ["x" * 40] * 100


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GROUP_TEXTS", 30), ("_GROUP_CHARS", 1000), ("_FIRST_CHARS", 100)):
        monkeypatch.setattr(f"lastword.text.groups.{name}", value)


def sizes(texts: list[str], **options: bool) -> list[int]:
    groups = list(split_into_groups(iter(texts), **options))
    assert [text for _, group in groups for text in group] == texts
    lengths = [len(group) for _, group in groups]
    assert [first for first, _ in groups] == [sum(lengths[:i]) for i in range(len(groups))]
    return lengths


def test_full_by_characters() -> None:
    assert sizes(TEXTS) == [25, 25, 25, 25]


def test_full_by_count() -> None:
    assert sizes([""] * 70) == [30, 30, 10]


def test_the_first_are_small() -> None:
    assert sizes(TEXTS, small_first=True) == [3, 10, 25, 25, 25, 12]


def test_a_text_is_never_split_and_no_group_is_empty() -> None:
    assert sizes(["y" * 5000, "z", "y" * 5000], small_first=True) == [1, 2]
    assert sizes([]) == []


@pytest.mark.parametrize("small_first", [False, True])
def test_a_non_string_fails_after_the_groups_before_it(small_first: bool) -> None:
    groups = split_into_groups(iter([*TEXTS[:50], None]), small_first=small_first)
    assert len(next(groups)[1]) == (3 if small_first else 25)
    with pytest.raises(InputError) as caught:
        list(groups)
    error = caught.value
    assert (error.where, error.what, error.got) == ("text 50", "not a string", "NoneType")
    assert error.index == 50
