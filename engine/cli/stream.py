"""Embed a stream of records: yield groups of records with their vectors, and name the file and line of each error.

Only the records that the Embedder has read but not yet embedded are held in memory.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
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
    advance: Callable[[int], None] | None = None,
    on_rows: Callable[[list[tuple[int, bool]]], None] | None = None,
    **options: Unpack["EncodeKwargs"],
) -> Iterator[tuple[list[Record], "Tensor"]]:
    """Yield groups of records, in order, each with its matrix of vectors [n, dim].

    Args:
        embedder: the model.
        records: the records to embed; the caller's thread reads them, some groups ahead of the vectors.
        prompt: the text to put before every text.
        failures: gets the texts that cannot be embedded. By default, or if `failures.skip` is False, the first such
            text ends the run.
        meter: counts the bytes read, for the progress bar.
        show: whether to show a progress bar; it counts bytes if the size of all inputs is known, else texts.
        advance: called with the number of bytes or texts done since its last call, to advance the caller's own bar;
            no bar is then shown here.
        on_rows: as for `Embedder.encode_groups`.
        options: options of `Embedder.encode_groups`.

    Raises:
        InputError: a text cannot be embedded; `where` names its file and line.
    """
    from lastword.progress import progress_bar

    waiting = _Waiting(failures or Failures(skip=False))
    options["show_progress_bar"] = False  # the bar below is shown instead
    total = None if meter is None else meter.total
    unit = " texts" if total is None else "B"
    with progress_bar(total, show=show and advance is None, unit=unit) as own:
        done = _Progress(advance or own, None if total is None else meter)
        groups = embedder.encode_groups(
            waiting.texts(records),
            prompt=prompt,
            on_error=waiting.refuse if waiting.failures.skip else None,
            on_done=lambda number: done.add(number, waiting.read),
            on_rows=on_rows,
            **options,
        )
        try:
            for matrix in groups:
                yield list(waiting.take(len(matrix))), matrix
        except InputError as error:
            waiting.name_place(error)
            raise
        finally:
            # Close the input files now, not only when the garbage collector runs.
            for each in (groups, records):
                if isinstance(each, Generator):
                    each.close()
        list(waiting.take(None))


class _Waiting:
    """The records that have been read but have neither a vector nor an error yet."""

    def __init__(self, failures: Failures) -> None:
        self.failures = failures
        self.read = 0  # number of records read
        self._taken = 0  # number of records that are no longer waiting
        self._records: deque[Record] = deque()
        self._refused: dict[int, InputError] = {}  # by the index of the text

    def texts(self, records: Iterable[Record]) -> Iterator[str]:
        """Yield the text of each record; the record is waiting from then on."""
        for record in records:
            self._records.append(record)
            self.read += 1
            yield record.text

    def refuse(self, error: InputError) -> None:
        """Note the error of a text; the error holds the text's index."""
        assert error.index is not None
        self._refused[error.index] = error

    def take(self, rows: int | None) -> Iterator[Record]:
        """Yield the next `rows` records that have a vector, and hand the records with an error to `failures`.

        Pass None after the last vector: each record that still waits has an error, and all are handed over.
        """
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


class _Progress:
    """Advances a progress bar by texts or, with a meter, by bytes of input.

    Within a group, texts are not embedded in the order in which they are read, so the bytes are an estimate: the bytes
    read so far, times the embedded share of the texts read so far.
    """

    def __init__(self, advance: Callable[[int], None], meter: Meter | None) -> None:
        self._advance, self._meter, self._texts, self._shown = advance, meter, 0, 0

    def add(self, texts: int, read: int) -> None:
        """Note that `texts` more texts are embedded; `read` is the number of texts read in total."""
        self._texts += texts
        reached = self._texts
        if self._meter is not None:
            reached = self._meter.position() * self._texts // max(1, read)
        if reached > self._shown:
            self._advance(reached - self._shown)
            self._shown = reached
