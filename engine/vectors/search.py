"""Search files of stored vectors exactly, and look up the records of the nearest ones."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from torch import Tensor

from lastword.cli.read import Record
from lastword.errors import InputError, valid_name
from lastword.vectors.codes import Codes
from lastword.vectors.find import VectorFile
from lastword.vectors.matrix import in_parts
from lastword.vectors.nearest import Nearest

_MOST_SCORES = 1 << 24  # scores computed at once


def search_files(
    files: Sequence[VectorFile],
    codes: Codes,
    queries: Tensor,
    most: int,
    where: str,
    advance: Callable[[int], None],
) -> list[list[tuple[float, int, Record]]]:
    """Return for each query its nearest vectors, the best first: (score, position, record).

    Args:
        files: the files, in order.
        codes: decodes the vectors of all files, and compares them with the queries.
        queries: [Q, dim] fp32.
        most: the number of vectors for each query.
        where: what is searched, for errors.
        advance: called with the number of vectors compared since its last call.

    Raises:
        InputError: there are no vectors, or a file is damaged.
    """
    nearest, starts, position = Nearest[int](queries, codes.similarity, most), list[int](), 0
    at_once = max(1, _MOST_SCORES // len(queries))
    for file in files:
        starts.append(position)
        for block in file.blocks():
            for part in in_parts(block, at_once):
                try:
                    nearest.add(part, range(position, position + len(part)))
                except InputError as error:
                    if error.index is not None:
                        row = position - starts[-1] + error.index
                        error.where = f"{valid_name(file.name)}: vector {row + 1:,}"
                        error.remedy = "Embed the texts again."
                    raise
                position += len(part)
                advance(len(part))
    if not position:
        raise InputError(where, "holds no vectors")
    ranked = list(nearest.ranked())
    records = _records(files, starts, {place for best in ranked for _, place, _ in best})
    return [[(score, place, records[place]) for score, place, _ in best] for best in ranked]


def _records(
    files: Sequence[VectorFile], starts: Sequence[int], places: Iterable[int]
) -> dict[int, Record]:
    """Return the records of these positions; each file that holds any of them is read once."""
    found: dict[int, Record] = {}
    for number, group in groupby(sorted(places), lambda place: bisect_right(starts, place) - 1):
        rows = [place - starts[number] for place in group]
        for row, record in zip(rows, files[number].records(rows), strict=True):
            found[starts[number] + row] = record
    return found
