"""Cuts a stream of texts into bounded groups that are tokenised, sorted and packed together. Knows texts only."""

from collections.abc import Iterable, Iterator

from lastword.errors import InputError

# Large enough to meet equal prefixes, small in memory.
GROUP_TEXTS = 4096
_GROUP_CHARS = 4_000_000
# A first group that is ready soon but fills a GPU's batch of 16,384 tokens of English, and how groups grow from it.
_FIRST_CHARS = 65_536
_GROWTH = 4


def cut_groups(
    texts: Iterator[object], *, small_first: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Gather texts until a group is full by count or by characters.

    Args:
        texts: read as groups are asked for.
        small_first: begin with a small group and let them grow, so that a device which computes while the next one is
            prepared has little to wait for.

    Yields:
        The caller's index of the group's first text, and the texts.

    Raises:
        InputError: a text is not a str; raised after the groups before its own.
    """
    full = _FIRST_CHARS if small_first else _GROUP_CHARS
    group: list[str] = []
    first, chars = 0, 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            got = type(text).__name__
            raise InputError(f"text {index}", "not a string", got=got, expected="str", index=index)
        group.append(text)
        chars += len(text)
        if len(group) == GROUP_TEXTS or chars >= full:
            yield first, group
            first, group, chars = index + 1, [], 0
            full = min(full * _GROWTH, _GROUP_CHARS)
    if group:
        yield first, group


def several(texts: Iterable[str]) -> Iterable[str]:
    """Refuse one str where several are expected: its items are its characters."""
    if isinstance(texts, str):
        raise InputError(
            "texts",
            "a single str, which is not taken here",
            got="str",
            expected="a list or an iterator of them",
            remedy="Put it in a list.",
        )
    return texts
