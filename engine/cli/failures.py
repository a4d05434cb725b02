"""Handle texts that cannot be used: either the first one stops the run, or they are left out, counted and listed."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO

from lastword.cli import console, options
from lastword.cli.documents.written import is_error_list, keep_foreign_files
from lastword.cli.output import check_extension, is_stream, open_output
from lastword.cli.read import STDIN, Fields, Record
from lastword.errors import InputError, count
from lastword.report import Report

if TYPE_CHECKING:
    from lastword.embedder import Embedder
    from lastword.reranker import Reranker

_SHOWN = 30  # characters of a word in a notice


class Failures:
    """Collects the texts of a run that cannot be read or embedded, and the files that cannot be read.

    Args:
        skip: whether to leave out such texts and files; if not, the first one ends the run.
        out: a stream that gets a JSON line for each text or file left out; None for no stream.
        name: the name of `out` in messages.
        never: kinds of errors that end the run even if `skip` is set.
    """

    def __init__(
        self,
        *,
        skip: bool,
        out: BinaryIO | None = None,
        name: str = "",
        never: tuple[type[InputError], ...] = (),
    ) -> None:
        self.skip, self._out, self._name, self._never = skip, out, name, never
        self.count, self._files, self._folders, self.first = 0, 0, 0, ""

    def leave_out_line(self, error: InputError, path: str, line: int | None) -> None:
        """Leave out a line, or the whole file or folder if `line` is None.

        Raises:
            InputError: `error`, if `skip` is False or `never` includes its kind.
        """
        folder = line is None and os.path.isdir(path)
        self._folders += folder
        self._files += line is None and not folder
        self._leave_out(error, {"path": path} if line is None else {"path": path, "line": line})

    def leave_out(self, error: InputError, record: Record) -> None:
        """Leave out a record that cannot be embedded; make the error name the record.

        Raises:
            InputError: `error`, if `skip` is False or `never` includes its kind.
        """
        error.where = record.where
        self._leave_out(error, record.place())

    def _leave_out(self, error: InputError, place: dict[str, str | int]) -> None:
        if not self.skip or isinstance(error, self._never):
            raise error
        self.count += 1
        message = options.in_option_words(error)
        self.first = self.first or message
        if self._out is not None:
            line = json.dumps({**place, "error": message})
            console.put(self._out, f"{line}\n".encode(), self._name)

    def summary(self) -> str:
        """Return in words how many folders, files and texts were left out."""
        texts = self.count - self._files - self._folders
        numbers = {"folder": self._folders, "file": self._files, "text": texts}
        *most, last = (count(number, name) for name, number in numbers.items() if number)
        parts = f"{', '.join(most)} and {last}" if most else last
        return f"{parts} left out because of an error"

    def notices(self) -> Iterator[str]:
        """Yield one line about what was left out, if anything was."""
        if self.count:
            yield f"{self.summary()}; the first: {self.first}"


class Blanks:
    """Counts texts that are empty or consist of white space only, and leaves them out if `skip` is set."""

    def __init__(self, *, skip: bool) -> None:
        self._skip, self.count = skip, 0

    def filter(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records that are to be embedded."""
        for record in records:
            blank = not record.text or record.text.isspace()
            self.count += blank
            if not (blank and self._skip):
                yield record

    @property
    def left_out(self) -> int:
        """The number of blank texts that were left out."""
        return self.count if self._skip else 0

    def notices(self) -> Iterator[str]:
        """Yield one line about blank texts, if there are any."""
        if self.count and self._skip:
            yield f"{count(self.count, 'blank text')} skipped"
        elif self.count:
            them = "it" if self.count == 1 else "them"
            yield f"{count(self.count, 'blank text')} embedded too; --skip-blank leaves {them} out"


class _NoneLeftError(InputError):
    """Every text was left out because of an error."""


def begin_error_list(args: argparse.Namespace) -> None:
    """Check --errors, and remove the list of an earlier run there; that list would mislead if this run failed.

    Raises:
        InputError: --errors does not fit the other options, or names a URL or a file that lastword did not write; or
            the earlier list cannot be removed.
    """
    path: str | None = args.errors
    if path is None:
        return
    options.refuse_url(path)
    if args.on_error != "skip":
        got = f"--on-error {args.on_error or 'stop'}"
        raise InputError("--errors", "lists skipped texts", got=got, expected="--on-error skip")
    check_extension(path, "jsonl", "--errors, which writes JSON lines")
    place, queries = os.path.realpath(path), getattr(args, "queries", None)
    inputs = map(os.path.realpath, filter(None, (*args.files, queries)))
    if place in inputs:
        return  # `refuse_overwriting` later refuses an output that is an input
    keep_foreign_files([path])
    if not is_stream(path) and is_error_list(place):
        console.attempt(lambda: os.remove(place), path)


@contextmanager
def collect_failures(args: argparse.Namespace) -> Iterator[Failures]:
    """Yield the `Failures` of a run, according to its options --on-error and --errors.

    The --errors file appears if the run succeeds, or if it fails only because every text was left out.
    """
    none_left = None
    with ExitStack() as files:
        out = None if args.errors is None else files.enter_context(open_output(args.errors))
        try:
            yield Failures(skip=args.on_error == "skip", out=out, name=args.errors or "")
        except _NoneLeftError as error:
            none_left = error
        if out is not None:
            console.attempt(out.flush, args.errors)
    if none_left is not None:
        raise none_left


def require_texts(
    texts: int, files: Sequence[str], failures: Failures, blanks: Blanks, fields: Fields
) -> None:
    """Check that a run had something to embed.

    Args:
        texts: the number of texts embedded.
        files: the command's arguments for input files; none means stdin.
        failures: the records left out because of an error.
        blanks: the blank texts, which may have been skipped.
        fields: counts the records skipped by --where.

    Raises:
        InputError: the input has no texts, or all of them were blank and skipped or were left out because of an error.
    """
    if texts:
        return
    several = len(files) > 1
    where = f"{len(files):,} inputs" if several else (files or [STDIN])[0]
    where = "stdin" if where == STDIN else where
    if failures.count:
        skipped = f", {count(blanks.count, 'blank text')} skipped" if blanks.count else ""
        lost, first = f"{failures.summary()}{skipped}", f"The first: {failures.first}"
        raise _NoneLeftError(where, "no text is left", got=lost, remedy=first)
    verb = "contain" if several else "contains"
    got = "only blank texts" if blanks.count else None
    if fields.skipped:
        what = f"{verb} no text that --where leaves"
        raise InputError(where, what, got=options.skipped_line(fields.skipped))
    raise InputError(where, f"{verb} no text", got=got)


def unknown_word_notices(report: Report, texts: str, model: "Embedder | Reranker") -> Iterator[str]:
    """Yield one line about texts that contain words the model does not know, if there are any.

    Args:
        report: the run's counts.
        texts: the number of all texts, in words: for example, "12 texts" or "3 queries".
        model: the model.
    """
    if report.unknown:
        longest, word = model.info.tokenizer.longest_word, report.unknown_word
        example = (
            f", such as {word[:_SHOWN]!r}{'...' if len(word) > _SHOWN else ''}" if word else ""
        )
        too_long = longest is not None and len(word) > longest
        long = f"; it knows no word of more than {longest} characters" if too_long else ""
        what = "with words or signs that the model does not know and cannot tell apart"
        yield f"{report.unknown:,} of {texts} {what}{example}{long}"
