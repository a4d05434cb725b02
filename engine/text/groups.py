"""Check what callers give as texts, and split a stream of texts into bounded groups.

The texts of one group are tokenised, sorted and packed together. An object is refused if iterating over it does not
give texts in a definite order: a dict would give its keys, a table the names of its columns, a set its elements in any
order.
"""

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping
from collections.abc import Set as AbstractSet

from lastword.errors import InputError

# Limits of a group: large enough that texts with the same prefix share a group, small enough for memory.
GROUP_TEXTS = 4096
_GROUP_CHARS = 4_000_000
# With `small_first`, the first group is full at this many characters: few, so that it is ready soon, but enough English
# text to fill a GPU batch of 16,384 tokens.
_FIRST_CHARS = 65_536
_GROWTH = 4


def split_into_groups(
    texts: Iterator[object], *, small_first: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Split a stream of texts into groups; a group is full at `GROUP_TEXTS` texts or `_GROUP_CHARS` characters.

    Args:
        texts: an iterator, read only as groups are requested.
        small_first: begin with a small group and let groups grow, so that a device that computes in the background
            gets its first batch early.

    Yields:
        For each group, the caller's index of its first text, and its texts.

    Raises:
        InputError: a text is not a str. The groups before that text's group are yielded first.
    """
    full = _FIRST_CHARS if small_first else _GROUP_CHARS
    group: list[str] = []
    first, chars = 0, 0
    for index, text in enumerate(texts):
        group.append(_as_text(text, index))
        chars += len(group[-1])
        if len(group) == GROUP_TEXTS or chars >= full:
            yield first, group
            first, group, chars = index + 1, [], 0
            full = min(full * _GROWTH, _GROUP_CHARS)
    if group:
        yield first, group


def list_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list of str.

    Raises:
        InputError: `texts` is refused by `require_texts`, or an element is not a str.
    """
    return [_as_text(text, index) for index, text in enumerate(require_texts(texts))]


def require_texts(texts: Iterable[str]) -> Iterator[str]:
    """Return an iterator over the texts.

    Lists, tuples, generators, arrays, columns (pandas, polars, Arrow, datasets) and the `keys()` and `values()` of a
    dict are accepted: they have an order, and their elements are the texts. A file is refused: its lines end with line
    breaks, which would change the vectors.

    Raises:
        InputError: `texts` is a single str, a mapping, a table, a set, bytes or a file, or cannot be iterated over.
    """
    for found, what, remedy in _NO_TEXTS:
        if found(texts):
            raise _no_texts(texts, what, remedy)
    try:
        return iter(texts)
    except TypeError as error:
        raise _no_texts(texts, "cannot be iterated over", "Pass a list of str.") from error


def _no_texts(texts: object, what: str, remedy: str) -> InputError:
    expected = "a list or an iterator of str"
    return InputError("texts", what, got=type(texts).__name__, expected=expected, remedy=remedy)


def _is_table(texts: object) -> bool:
    """Return whether `texts` is a table. Only its type is inspected: a lazy data frame would compute its columns."""
    return hasattr(type(texts), "columns") or hasattr(type(texts), "column_names")


def _is_mapping(texts: object) -> bool:
    """Return whether iterating over `texts` gives keys. A pandas Series has `keys` too, but gives its values."""
    return hasattr(type(texts), "keys") and not hasattr(type(texts), "tolist")


def _is_unordered(texts: object) -> bool:
    """Return whether `texts` is an unordered set. The views of a dict are sets to Python, but ordered."""
    return isinstance(texts, AbstractSet) and not isinstance(texts, KeysView | ItemsView)


# What is refused: a function that recognises it, what is wrong with it, and what to do instead.
_NO_TEXTS: tuple[tuple[Callable[[object], bool], str, str], ...] = (
    (
        lambda texts: isinstance(texts, str),
        "a single str, which is not accepted here",
        "Put it in a list.",
    ),
    (
        lambda texts: isinstance(texts, bytes | bytearray | memoryview),
        "bytes, which are not text",
        "Decode them, as in data.decode(), and put the text in a list.",
    ),
    (_is_table, "a table, which is not a column of texts", "Pass one of its columns."),
    (
        _is_mapping,
        "a mapping, which would give its keys",
        "Pass its values, as in texts.values(), or list(texts) for its keys.",
    ),
    (_is_unordered, "a set, which has no order", "Pass a list, as in sorted(texts)."),
    (
        lambda texts: callable(getattr(texts, "readline", None)),
        "a file, whose lines would keep their line breaks",
        "Pass its lines without them, as in (line.rstrip('\\n') for line in file).",
    ),
)


def _as_text(text: object, index: int) -> str:
    """Return `text` if it is a str, or the str in a value of an Arrow column; raise InputError for anything else."""
    if isinstance(text, str):
        return text
    value = text.as_py() if hasattr(text, "as_py") else text
    if isinstance(value, str):
        return value
    got, remedy = type(value).__name__, _remedy(value)
    what, expected = "not a string", "str"
    raise InputError(f"text {index}", what, got=got, expected=expected, remedy=remedy, index=index)


def _remedy(value: object) -> str:
    """Return the remedy for an element that is not a str."""
    missing = value is None or type(value).__name__ in ("NAType", "NaTType")
    if missing or (isinstance(value, float) and value != value):
        return "A value is missing: leave it out, or put '' in its place."
    if isinstance(value, bytes | bytearray):
        return "Decode it, as in data.decode()."
    if isinstance(value, list | tuple | AbstractSet | Mapping) or getattr(value, "shape", ()) != ():
        return "Pass one flat list of str, with one str per text."
    return "Convert it with str()."
