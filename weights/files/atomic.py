"""Write files and folders atomically: under a temporary name in the same folder, synced, then renamed.

If anything stops the writing (an error, a full disk, Ctrl-C), the unfinished file is removed and an existing file stays
unchanged. This module knows nothing about file formats.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lastword.errors import InputError

StrPath = str | os.PathLike[str]


@contextmanager
def name_write_errors(path: StrPath) -> Iterator[None]:
    """Turn an OSError inside the block into an InputError that names `path`."""
    try:
        yield
    except OSError as problem:
        raise InputError(
            str(path), f"cannot be written ({problem.strerror or problem})"
        ) from problem


@contextmanager
def replace_file(path: StrPath) -> Iterator[BinaryIO]:
    """Yield a stream for the new content of `path`; when the block ends without an error, replace `path` by it.

    A link stays a link, and the new file has the old file's mode. Errors raised inside the block pass through.

    Raises:
        InputError: the folder is missing or not writable, the file cannot be synced, or `path` is a folder or
            a device, which renaming would destroy.
    """
    target = os.path.realpath(path)
    mode = _old_mode(target, path)
    part = _temporary_path(target)
    stream = _create(part, path)
    try:
        yield stream
        with name_write_errors(path):
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            stream.close()
        with suppress(OSError):
            os.unlink(part)
        raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; when the block ends without an error, rename it to `path`, which must not exist.

    Raises:
        OSError: the folder cannot be created, synced or renamed.
    """
    part = Path(_temporary_path(str(path)))
    part.mkdir()
    try:
        yield part
        sync_tree(part)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def sync_tree(folder: Path) -> None:
    """Sync a folder, and every file and folder in it, to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Sync a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_path(target: str) -> str:
    """Return a new hidden name in the target's folder; its length does not depend on the target's name."""
    return os.path.join(os.path.dirname(target), f".lastword-{secrets.token_hex(8)}.part")


def _old_mode(target: str, path: StrPath) -> int | None:
    with name_write_errors(path):
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            return None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device or pipe"
        raise InputError(str(path), "cannot be written", got=f"a {kind}", expected="a file name")
    return stat.S_IMODE(mode)


def _create(part: str, path: StrPath) -> BinaryIO:
    try:
        return open(part, "xb", buffering=1 << 20)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise InputError(str(path), f"cannot be written (its folder: {reason})") from problem
