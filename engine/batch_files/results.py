"""Write the answers of a batch file as they come, and go on where an interrupted run stopped.

OUT             a line per request, in the order of the requests
OUT.run.json    the settings on which the answers depend
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lastword.cli import console
from lastword.cli.output import is_stream, open_output
from lastword.errors import InputError, LastwordError
from lastword.weights.files.atomic import check_folder, lock, name_write_errors, replace_file
from lastword.weights.json_fields import read_object

VERSION = 1  # raise this when equal settings give different answers than before
_NEW = "To begin anew, delete it and its .run.json file, or name another file."
ID = "batch_req_"  # before the hash in a line's `id`
_ANSWERED = b'"response":{"status_code":200,'  # quotes within values are escaped


class ResultsFile:
    """The output of a run.

    Args:
        stream: takes the lines; unbuffered.
        name: its name, for messages.
        old: reads the lines of earlier runs; None if there are none.
    """

    def __init__(self, stream: BinaryIO, name: str, old: BinaryIO | None = None) -> None:
        self._stream, self._name, self._old = stream, name, old
        self.requests = self.errors = 0  # lines of all runs, and those of them with an error
        self.found = 0  # lines of earlier runs
        self.first_error = ""  # the message of the first line with an error

    def find(self, ids: Sequence[str]) -> int:
        """Return how many of the next requests have a complete line from an earlier run.

        If some have none, the file is cut after the last complete line.

        Args:
            ids: the hashes of the requests, as in the lines' `id`.

        Raises:
            InputError: a line is damaged, or does not answer the request in its place.
        """
        if self._old is None:
            return 0
        for place, request_id in enumerate(ids):
            start = self._old.tell()
            line, expected = self._old.readline(), f'{{"id":"{ID}{request_id}",'.encode()
            if not (line.startswith(expected) or expected.startswith(line)):
                raise InputError(
                    f"{self._name}:{self.requests + 1}",
                    "is not the answer to the request in its place",
                    remedy=f"The input has changed since, or this file has. {_NEW}",
                )
            if not line.endswith(b"\n"):
                console.attempt(lambda to=start: self._cut(to), self._name)  # type: ignore[misc]
                return place
            self.found += 1
            self._count(line)
        return len(ids)

    def _count(self, line: bytes) -> None:
        self.requests += 1
        if _ANSWERED in line:
            return
        self.errors += 1
        try:
            found = json.loads(line)
            failure = found["error"] or found["response"]["body"]["error"]
            said = f"custom_id {found['custom_id']!r}: {failure['message']}"
        except (ValueError, LookupError, TypeError, RecursionError):
            raise InputError(f"{self._name}:{self.requests}", "is damaged", remedy=_NEW) from None
        self.first_error = self.first_error or said

    def _cut(self, size: int) -> None:
        os.ftruncate(self._stream.fileno(), size)
        self._stream.seek(size)
        self._old = None

    def check_end(self) -> None:
        """Check that earlier runs have written no more lines than there are requests.

        Raises:
            InputError: they have.
        """
        if self._old is not None and self._old.read(1):
            remedy = f"The input was longer then. {_NEW}"
            raise InputError(self._name, "has more lines than the input", remedy=remedy)

    def write(self, lines: Iterable[bytes]) -> None:
        """Append lines, and wait until they are on the disk.

        Raises:
            ReaderGone, InputError: as for `console.put`.
        """
        for line in lines:
            console.put(self._stream, line, self._name)
            self._count(line)
        if stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode):
            console.attempt(lambda: os.fsync(self._stream.fileno()), self._name)


def settings_file(path: str) -> Path:
    """Return the path of the file with the settings of the run that wrote `path`."""
    return Path(f"{path}.run.json")


def earlier_settings(path: str) -> dict[str, Any] | None:
    """Return the settings of the earlier run that wrote the file `path`; None if it is missing, empty or a stream.

    Raises:
        InputError: the file is not empty, and has no file of settings or one of another version; or the file of
            settings is damaged or not from run-batch.
    """
    if is_stream(path):
        return None
    begun = os.path.exists(path) and os.path.getsize(path) > 0
    if not settings_file(path).exists():
        if not begun:
            return None
        raise InputError(
            path,
            "exists already",
            expected="a new file, or the unfinished output of run-batch with its .run.json file",
            remedy="Name another file. Answers to requests from a pipe cannot be continued.",
        )
    found = _read_settings(settings_file(path))
    if not begun:
        return None
    if found["version"] != VERSION:
        got = f"version {found['version']}"
        raise InputError(
            str(settings_file(path)), "is of another version of lastword", got=got, remedy=_NEW
        )
    return dict(found["settings"])


def _read_settings(file: Path) -> dict[str, Any]:
    """Read a file with the version and settings of a run; refuse any other file."""
    try:
        found = read_object(file)
        got = None if found.keys() >= {"version", "settings"} else "another object"
        if got is None and not isinstance(found["settings"], dict):
            got = "settings that are not an object"
    except LastwordError as error:
        got = error.what
    if got is not None:
        what, remedy = "is not from run-batch, or is damaged", "Move it, or name another output."
        expected = "the settings of a run, which a new run replaces"
        raise InputError(str(file), what, got=got, expected=expected, remedy=remedy)
    return found


def check_settings(
    path: str, settings: Mapping[str, Any] | None, before: Mapping[str, Any]
) -> None:
    """Check that a run has the settings of the earlier run that it continues.

    Args:
        path: the output.
        settings: the settings of the run; None if its input is a pipe.
        before: the settings of the earlier run.

    Raises:
        InputError: a setting differs, and the error names the first one; or the input is a pipe.
    """
    if settings is None:
        what = "holds answers already, and requests from a pipe cannot be read again"
        raise InputError(path, what, remedy="Name another file.")

    # With another model, many settings differ: compare its name first and its fingerprint last.
    def order(name: str) -> tuple[bool, bool, str]:
        return "fingerprint" in name, not name.startswith("name"), name

    names = sorted(before.keys() | settings.keys(), key=order)
    for name in names:
        if settings.get(name) != before.get(name):
            raise InputError(
                path,
                f"was begun with another {name}",
                got=str(settings.get(name)),
                expected=str(before.get(name)),
                remedy=f"Give the options of that run. {_NEW}",
            )


@contextmanager
def open_results(path: str, settings: Mapping[str, Any] | None) -> Iterator[ResultsFile]:
    """Open the output, and lock it if it is a file.

    Args:
        path: the output.
        settings: the settings of the run; None if the run cannot be continued later.

    Raises:
        InputError: the output cannot be written, another process is writing it, or it is from a run with other
            settings.
    """
    if is_stream(path):
        with open_output(path) as stream:
            yield ResultsFile(stream, console.STDOUT if path == "-" else path)
        return
    check_folder(path)
    with ExitStack() as files:
        with name_write_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stream = files.enter_context(open(descriptor, "r+b", buffering=0))
        try:
            lock(descriptor)
        except BlockingIOError:
            raise InputError(path, "is being written by another process") from None
        except OSError:
            pass  # the file system has no locks
        old = None
        before = earlier_settings(path)  # again, now locked: another run may have begun the file
        if before is not None:
            check_settings(path, settings, before)
            old = files.enter_context(open(path, "rb", buffering=1 << 20))
        elif settings is not None:
            with replace_file(settings_file(path)) as out:
                whole = {"version": VERSION, "settings": dict(settings)}
                out.write(json.dumps(whole, ensure_ascii=False, indent=1).encode() + b"\n")
        else:
            with suppress(FileNotFoundError):
                os.unlink(settings_file(path))
        yield ResultsFile(stream, path, old)
