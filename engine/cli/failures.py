"""What becomes of records that cannot be used: the run stops, or they are left out, counted and listed in a file."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from lastword.cli import console
from lastword.cli.read import STDIN, Record
from lastword.errors import InputError, count


class Failures:
    """The records of a run that cannot be read or embedded.

    Args:
        skip: leave them out; otherwise the first one ends the run.
        out: gets a JSON line for each, if given.
        name: the name of `out` in messages.
    """

    def __init__(self, *, skip: bool, out: BinaryIO | None = None, name: str = "") -> None:
        self.skip, self._out, self._name = skip, out, name
        self.count, self._files, self._first = 0, 0, ""
        self.texts = 0  # so far, also those that cannot be used

    def bad(self, error: InputError, path: str, line: int | None) -> None:
        """Leave out a record that cannot be read, or raise its error; without a line it is a file."""
        self.leave_out(error, path, line, self.texts)
        self._files += line is None
        self.texts += 1

    def leave_out(self, error: InputError, path: str, line: int | None, index: int) -> None:
        """Leave out a text, or raise its error; `index` is its number among all texts, from 0."""
        if not self.skip:
            raise error
        self.count += 1
        self._first = self._first or str(error)
        if self._out is not None:
            fields = {"path": path, "line": line, "index": index, "error": str(error)}
            console.put(self._out, f"{json.dumps(fields)}\n".encode(), self._name)

    def notices(self) -> Iterator[str]:
        """Yield one line about the records left out, if there are any."""
        if self.count:
            texts = self.count - self._files
            told = [count(self._files, "file")] if self._files else []
            told += [count(texts, "text")] if texts else []
            yield f"{' and '.join(told)} left out because of an error; the first: {self._first}"


class Blanks:
    """Counts the texts that are empty or all white space, and leaves them out if `skip` is set."""

    def __init__(self, *, skip: bool) -> None:
        self._skip, self.count = skip, 0

    def filtered(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records that are to be embedded."""
        for record in records:
            blank = not record.text or record.text.isspace()
            self.count += blank
            if not (blank and self._skip):
                yield record

    def notices(self) -> Iterator[str]:
        """Yield one line about blank texts, if there are any."""
        if self.count and self._skip:
            yield f"{count(self.count, 'blank text')} skipped"
        elif self.count:
            them = "it" if self.count == 1 else "them"
            yield f"{count(self.count, 'blank text')} embedded too; --skip-blank leaves {them} out"


def require_texts(texts: int, files: Sequence[str], failures: Failures, blanks: Blanks) -> None:
    """Check that a run had something to embed, or left it out because of an error.

    Args:
        texts: the number of texts embedded.
        files: the command's arguments for input files; none means stdin.
        failures: the records left out because of an error.
        blanks: the blank texts, which may have been skipped.

    Raises:
        InputError: the input has no texts, or only blank ones that are skipped.
    """
    if texts or failures.count:
        return
    where = "FILES" if len(files) > 1 else (files or [STDIN])[0]
    verb = "contain" if where == "FILES" else "contains"
    got = "only blank texts" if blanks.count else None
    raise InputError("stdin" if where == STDIN else where, f"{verb} no text", got=got)
