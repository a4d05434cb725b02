"""Records in, each group of them with its vectors out: the Embedder's groups, with errors told by file and line.

Holds only the records that the Embedder has taken and not yet answered.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Unpack

from lastword.cli.read import Record
from lastword.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lastword.embedder import Embedder
    from lastword.options import EncodeKwargs


def embed_records(
    embedder: "Embedder", records: Iterable[Record], prompt: str, **options: Unpack["EncodeKwargs"]
) -> Iterator[tuple[list[Record], "Tensor"]]:
    """Yield groups of records, each with its matrix of vectors, in order.

    Args:
        embedder: what embeds them; it may read the records from a thread of its own, some groups ahead.
        records: what is embedded.
        prompt: goes before every text.
        options: as `Embedder.encode_groups` takes them.
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
