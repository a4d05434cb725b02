"""Cut a stream of texts into bounded groups; each group is tokenised, sorted and packed together."""

from collections.abc import Iterable, Iterator

from lastword.errors import InputError

# Large enough for texts with equal prefixes to meet, small enough for memory.
GROUP_TEXTS = 4096
_GROUP_CHARS = 4_000_000
# The first group is small, to be ready soon, but fills a GPU batch of 16,384 tokens of English; later groups grow.
_FIRST_CHARS = 65_536
_GROWTH = 4


def cut_groups(
    texts: Iterator[object], *, small_first: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Gather texts until a group is full by count or by characters.

    Args:
        texts: an iterator, read only as groups are requested.
        small_first: begin with a small group and let the groups grow, so that a device that computes in the
            background gets its first batch early.

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


def require_texts(texts: Iterable[str]) -> Iterable[str]:
    """Return the texts, but raise InputError for a single str, since iterating it would yield its characters."""
    if isinstance(texts, str):
        raise InputError(
            "texts",
            "a single str, which is not accepted here",
            got="str",
            expected="a list or an iterator of str",
            remedy="Put it in a list.",
        )
    return texts
