"""Records in, each with its vector out: the Embedder's stream, with errors told by file and line.

Holds only the records that the Embedder has taken and not yet answered.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from lastword.cli.read import Record
from lastword.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lastword.embedder import Embedder
    from lastword.report import Report


class StreamOptions(TypedDict, total=False):
    """What `Embedder.encode_stream` takes besides texts."""

    prompt: str
    precision: str
    ranges: "Tensor | None"
    too_long: Literal["cut", "error"]
    normalize_embeddings: bool
    report: "Report"
    show_progress_bar: bool


def embed_records(
    embedder: "Embedder", records: Iterable[Record], **options: Unpack[StreamOptions]
) -> Iterator[tuple[Record, "Tensor"]]:
    """Yield every record with its vector, in order; `options` go to `Embedder.encode_stream`."""
    pending: deque[Record] = deque()
    answered = 0

    def texts() -> Iterator[str]:
        for record in records:
            pending.append(record)
            yield record.text

    try:
        for vector in embedder.encode_stream(texts(), **options):
            answered += 1
            yield pending.popleft(), vector
    except InputError as error:
        index = error.index
        if index is None or not 0 <= index - answered < len(pending):
            raise
        raise InputError(located(error, pending[index - answered].where)) from error


def located(error: InputError, where: str) -> str:
    """Return the message of a text's error with its place instead of its number."""
    return f"{where}: " + re.sub(r"^text \d+: *", "", str(error))
