"""Embed a stream of records: yield groups of records with their vectors, and report errors by file and line.

Only records that the Embedder has read and not yet embedded are held in memory.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Unpack

from lastword.cli.read import Record
from lastword.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lastword.embedder import Embedder
    from lastword.encode_options import EncodeKwargs


def embed_records(
    embedder: "Embedder", records: Iterable[Record], prompt: str, **options: Unpack["EncodeKwargs"]
) -> Iterator[tuple[list[Record], "Tensor"]]:
    """Yield groups of records, in order, each with its matrix of vectors [n, dim].

    Args:
        embedder: the model; it may read records in its own thread, some groups ahead.
        records: the records to embed.
        prompt: text to put before every text.
        options: options of `Embedder.encode_groups`.

    Raises:
        InputError: a text cannot be embedded; `where` names its file and line.
    """
    pending: deque[Record] = deque()
    answered = 0

    def texts() -> Iterator[str]:
        for record in records:
            pending.append(record)
            yield record.text

    try:
        for matrix in embedder.encode_groups(texts(), prompt=prompt, **options):
            answered += len(matrix)
            yield [pending.popleft() for _ in range(len(matrix))], matrix
    except InputError as error:
        if error.index is not None and 0 <= error.index - answered < len(pending):
            error.where = pending[error.index - answered].where
        raise
