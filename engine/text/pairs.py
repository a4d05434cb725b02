"""Check what callers give as pairs of a query and a document, and name a pair in an error."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from lastword.arguments import short_repr
from lastword.errors import InputError, not_unicode

Pair = Sequence[str]


def list_pairs(pairs: object) -> tuple[list[tuple[str, str]], bool]:
    """Return pairs as tuples, and whether the caller gave a single pair instead of a list.

    Raises:
        InputError: `pairs` is not a list of pairs, or an element is not a query and a document, both str.
    """
    if hasattr(pairs, "tolist"):  # an array or a tensor
        pairs = pairs.tolist()
    if isinstance(pairs, str | Mapping | AbstractSet) or not isinstance(pairs, Iterable):
        expected = "a list of pairs (query, document), or one pair"
        raise InputError(
            "pairs", "not a list of pairs", got=type(pairs).__name__, expected=expected
        )
    listed = list(pairs)
    single = isinstance(pairs, Sequence) and bool(listed) and isinstance(listed[0], str)
    checked = []
    for index, pair in enumerate([listed] if single else listed):
        parts = pair.tolist() if hasattr(pair, "tolist") else pair
        if not isinstance(parts, list | tuple) or list(map(_is_text, parts)) != [True, True]:
            got, expected = short_repr(pair), "a query and a document, both str"
            raise InputError(f"pair {index}", "not a pair", got=got, expected=expected, index=index)
        checked.append((parts[0], parts[1]))
    return checked, single


def _is_text(part: object) -> bool:
    return isinstance(part, str)


def name_pair(error: InputError, pairs: list[tuple[str, str]], noun: str) -> InputError:
    """Make an error of the loop name the pair, by `noun` and index, instead of a text; return the error.

    If the pair's query or document is not valid Unicode, the error names that part. An error without an index is
    returned as it is.
    """
    if error.index is None:
        return error
    error.where = f"{noun} {error.index}"
    for part, text in zip(("query", "document"), pairs[error.index], strict=True):
        problem = not_unicode(InputError, f"{error.where}: its {part}", text)
        if isinstance(problem, InputError):
            problem.index = error.index
            return problem
    return error
