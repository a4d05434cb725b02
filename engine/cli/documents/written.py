"""Recognise the files that lastword itself has written, so that they are not read from a folder or pattern.

Otherwise a second run would embed the output of the first, and `search` would find every text twice.
"""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import BinaryIO

from lastword.cli.output import is_stream
from lastword.cli.read import PLACE
from lastword.errors import InputError

# Keys that the metadata of every output of `embed` has.
_METADATA = frozenset(("space", "run", "fingerprints", "lastword"))
# Keys that the lines of an --errors list may have.
_LISTED = frozenset((*PLACE, "error"))
_ROWS = ".rows.jsonl"
_MOST_BYTES = 1 << 20  # the most bytes to read of a file in order to recognise it


def is_by_lastword(path: str) -> bool:
    """Return whether lastword has written a file, or is writing it, judging by its content and the metadata beside it.

    It recognises the vectors of `embed`, OUT.json and OUT.rows.jsonl, saved ranges, lists of skipped texts, and the
    files to which stdout and stderr of this process are redirected.
    """
    if any(is_open(path, descriptor) for descriptor in (1, 2)):
        return True
    # If the output was a link, the metadata is beside the link or beside the file that it leads to.
    names = {path, os.path.realpath(path)}
    return any(is_error_list(each) or _is_output(each) for each in names)


def is_job_folder(path: str) -> bool:
    """Return whether a folder is the output of a job (`lastword.bulk`), judging by how its plan begins."""
    with suppress(OSError), open(os.path.join(path, "_plan.json"), "rb") as file:
        first = file.read(64)
        return first.startswith(b'{\n "version": ') and b'\n "settings": {' in first
    return False


def is_open(path: str, descriptor: int) -> bool:
    """Return whether a path leads to the regular file that is open as `descriptor`, such as 1 for stdout."""
    with suppress(OSError):
        return os.path.isfile(path) and os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def keep_foreign_files(paths: Iterable[str | None]) -> None:
    """Refuse to replace files that lastword did not write. This is for outputs beside the main one, such as OUT.json.

    Args:
        paths: the outputs; None stands for an option that was not given. Streams, new files and empty files pass.

    Raises:
        InputError: one of the files holds something else.
    """
    for path in paths:
        if path is None or is_stream(path) or not os.path.isfile(path) or not os.path.getsize(path):
            continue
        # A file of ranges may have any extension, so look for a safetensors header in it too.
        if not is_by_lastword(path) and not _has_metadata(_metadata_in(path)):
            raise InputError(
                path,
                "would be replaced",
                got="a file that lastword did not write",
                expected="a new file, or one of an earlier run",
                remedy="Move it away, or name another output.",
            )


def is_error_list(path: str) -> bool:
    """Return whether a file begins like a list of skipped texts that --errors wrote; an empty list does not."""
    listed = _object_in(path).keys()
    return {"path", "error"} <= listed <= _LISTED


def _is_output(path: str) -> bool:
    if _is_metadata(f"{path}.json"):
        return True
    if path.endswith(_ROWS):
        with suppress(OSError), open(path, "rb") as file:
            return file.read(10) == b'{"path": "'
    if path.endswith(".json"):
        return _is_metadata(path)
    if path.endswith(".safetensors"):
        return metadata_of(path) != {}
    return header_of(path) != {}


def header_of(path: str) -> dict[str, object]:
    """Return the metadata in the first line of JSON lines, as --header prints it; {} for other files."""
    first = _object_in(path)
    found = first.get("lastword")
    return (
        found
        if first.keys() == {"lastword"} and isinstance(found, dict) and _has_metadata(found)
        else {}
    )


def metadata_of(path: str) -> dict[str, object]:
    """Return the metadata of a file that `embed` wrote, from the file itself or from OUT.json; {} for other files."""
    if path.endswith(".safetensors"):
        found = _metadata_in(path)
    else:
        found = _whole_object(path if path.endswith(".json") else f"{path}.json")
    return found if isinstance(found, dict) and _has_metadata(found) else {}


def _metadata_in(path: str) -> object:
    return _object_in(path, binary=True).get("__metadata__")


def _is_metadata(path: str) -> bool:
    return _has_metadata(_whole_object(path))


def _whole_object(path: str) -> object:
    """Return the value in a JSON file; None if the file is missing, not valid JSON, or too large."""
    with suppress(OSError, ValueError, RecursionError):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return json.loads(file.read(_MOST_BYTES))
    return None


def _has_metadata(found: object) -> bool:
    return isinstance(found, dict) and found.keys() >= _METADATA


def _object_in(path: str, *, binary: bool = False) -> dict[str, object]:
    """Return the JSON object in a file's first line or, with `binary`, in its safetensors header; {} if it has none."""
    with suppress(OSError, ValueError, RecursionError), open(path, "rb") as file:
        found = json.loads(_header(file) if binary else _first_line(file))
        return found if isinstance(found, dict) else {}
    return {}


def _first_line(file: BinaryIO) -> bytes:
    first = file.read(1)
    return first + file.readline(_MOST_BYTES) if first == b"{" else b""


def _header(file: BinaryIO) -> bytes:
    return file.read(min(_MOST_BYTES, int.from_bytes(file.read(8), "little")))
