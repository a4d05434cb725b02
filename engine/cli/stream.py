"""Embed a stream of records: yield groups of records with their vectors, and report errors by file and line.

Only records that the Embedder has read and not yet embedded are held in memory.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Unpack

from lastword.cli.failures import Failures
from lastword.cli.read import Meter, Record
from lastword.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lastword.embedder import Embedder
    from lastword.encode_options import EncodeKwargs


def embed_records(
    embedder: "Embedder",
    records: Iterable[Record],
    prompt: str,
    *,
    failures: Failures | None = None,
    meter: Meter | None = None,
    show: bool = False,
    **options: Unpack["EncodeKwargs"],
) -> Iterator[tuple[list[Record], "Tensor"]]:
    """Yield groups of records, in order, each with its matrix of vectors [n, dim].

    Args:
        embedder: the model; it may read records in its own thread, some groups ahead.
        records: the records to embed.
        prompt: text to put before every text.
        failures: told about texts that cannot be embedded; the run ends with the first one if it does not skip them.
        meter: what the records are read from, for the progress bar.
        show: show a bar of the bytes embedded, or of the texts where the inputs are not files.
        options: options of `Embedder.encode_groups`.

    Raises:
        InputError: a text cannot be embedded; `where` names its file and line.
    """
    from lastword.progress import progress_bar

    waiting = _Waiting(failures or Failures(skip=False))
    options["show_progress_bar"] = False  # here is one
    total = None if meter is None else meter.total
    with progress_bar(total, show=show, unit=" texts" if total is None else "B") as advance:
        done = _Done(advance, None if total is None else meter)
        groups = embedder.encode_groups(
            waiting.texts(records),
            prompt=prompt,
            on_error=waiting.refuse if waiting.failures.skip else None,
            on_done=lambda number: done.add(number, waiting.read),
            **options,
        )
        try:
            for matrix in groups:
                yield list(waiting.take(len(matrix))), matrix
        except InputError as error:
            waiting.name_place(error)
            raise
        list(waiting.take(None))


class _Waiting:
    """The records that are read and have neither a vector nor an error yet."""

    def __init__(self, failures: Failures) -> None:
        self.failures = failures
        self.read = self._taken = (
            0  # texts that could be read, and of these, those that wait no more
        )
        self._records: deque[Record] = deque()
        self._refused: dict[int, InputError] = {}

    def texts(self, records: Iterable[Record]) -> Iterator[str]:
        """Yield the texts of the records, which wait from then on."""
        for record in records:
            self._records.append(record)
            self.read += 1
            yield record.text

    def refuse(self, error: InputError) -> None:
        """Note the error of a text, which gives the text's index."""
        assert error.index is not None
        self._refused[error.index] = error

    def take(self, rows: int | None) -> Iterator[Record]:
        """Yield the next `rows` records that have a vector; leave out those between them, for None all that wait."""
        while self._records and rows != 0:
            record = self._records.popleft()
            error = self._refused.pop(self._taken, None)
            self._taken += 1
            if error is not None:
                self.failures.leave_out(error, record)
            elif rows is not None:
                rows -= 1
                yield record

    def name_place(self, error: InputError) -> None:
        """Make an error name the file and line of its text."""
        place = -1 if error.index is None else error.index - self._taken
        if 0 <= place < len(self._records):
            error.where = self._records[place].where


class _Done:
    """Moves a progress bar: by texts or, with a meter, by the bytes of the texts that are embedded.

    Texts are embedded a group at a time, in another order than they are read. So the bytes are an estimate: those
    that have been read, times the share of the texts read that are embedded.
    """

    def __init__(self, advance: Callable[[int], None], meter: Meter | None) -> None:
        self._advance, self._meter, self._texts, self._shown = advance, meter, 0, 0

    def add(self, texts: int, read: int) -> None:
        """Note that more texts are embedded, and how many have been read."""
        self._texts += texts
        reached = self._texts
        if self._meter is not None:
            reached = self._meter.position() * self._texts // max(1, read)
        if reached > self._shown:
            self._advance(reached - self._shown)
            self._shown = reached
