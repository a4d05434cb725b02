"""Write files and folders atomically: under a temporary name in the same folder, synced, then renamed.

If an error, a full disk or Ctrl-C stops the writing, the unfinished file is removed and an existing file stays
unchanged. A killed run cannot remove its unfinished file, so the next run that writes the same output does. That run
recognises unfinished files by their names, which contain a hash of the output's name, and leaves those that a run
in progress has locked. This module does not depend on any file format.
"""

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from lastword.errors import InputError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked, and nothing is removed
    fcntl = None

StrPath = str | os.PathLike[str]

# The temporary files and folders that this process is writing.
_unfinished: set[str] = set()


def remove_unfinished() -> None:
    """Remove this process's unfinished files and folders; call this before ending it while another thread writes."""
    for part in tuple(_unfinished):
        with suppress(OSError):
            os.unlink(part)
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def name_write_errors(path: StrPath) -> Iterator[None]:
    """Turn an OSError in the `with` block into an InputError which says that `path` cannot be written."""
    try:
        yield
    except OSError as problem:
        raise InputError(
            str(path), f"cannot be written ({problem.strerror or problem})"
        ) from problem


def check_folder(path: StrPath) -> None:
    """Check that the folder of an output exists; if the output is a link, also check the folder of the link's target.

    Raises:
        InputError: one of these does not exist or is not a folder; the error names it.
    """
    folders = os.path.dirname(path) or ".", os.path.dirname(os.path.realpath(path))
    for folder in folders:
        if not os.path.isdir(folder):
            there = os.path.lexists(folder)
            what, remedy = (
                ("is not a folder", "Name a folder.")
                if there
                else ("no such folder", "Create it first.")
            )
            raise InputError(str(folder), what, remedy=remedy)


@contextmanager
def replace_file(path: StrPath) -> Iterator[BinaryIO]:
    """Yield a stream for the new content of `path`; when the block ends without an error, replace the file.

    If `path` is a link, the file that the link points to is replaced. The new file gets the old file's mode. Errors
    raised in the block are passed on.

    Raises:
        InputError: the folder is missing or not writable, the file cannot be synced or renamed, or `path` is a folder,
            device or pipe, which a file must not replace.
    """
    check_folder(path)
    target = os.path.realpath(path)
    mode = _old_mode(target, path)
    _remove_leftovers(target)
    stream = _create(target, path)
    part = stream.name
    _unfinished.add(part)
    try:
        yield stream
        with name_write_errors(path):
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(part, target)  # before the stream, and with it the lock, is closed
            stream.close()
    except BaseException:
        with suppress(OSError):
            stream.close()
        with suppress(OSError):
            os.unlink(part)
        raise
    finally:
        _unfinished.discard(part)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; when the block ends without an error, rename it to `path`, which must be free.

    Raises:
        OSError: the folder cannot be created, synced or renamed.
    """
    _remove_leftovers(str(path))
    with _create_folder(str(path)) as part:
        _unfinished.add(str(part))
        try:
            yield part
            sync_tree(part)
            part.rename(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            _unfinished.discard(str(part))


def lock(descriptor: int, *, wait: bool = False) -> None:
    """Lock an open file or folder for this process until the descriptor is closed; without `fcntl` do nothing.

    Args:
        descriptor: the open file or folder.
        wait: whether to wait until no other process holds the lock.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is not set.
        OSError: the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


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


def _prefix(target: str) -> str:
    """Return the prefix of all temporary names of a target; the prefix has the same length for every target."""
    name = os.fsencode(os.path.basename(target))
    return f".lastword-{hashlib.sha256(name).hexdigest()[:16]}-"


def _temporary_path(target: str) -> str:
    """Return a new temporary name for a target: a hidden name in the target's folder."""
    folder = os.path.dirname(target)
    return os.path.join(folder, f"{_prefix(target)}{secrets.token_hex(8)}.part")


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


def _create(target: str, path: StrPath) -> BinaryIO:
    """Create and lock a file under a temporary name of `target`."""
    while True:
        stream = _open_new(_temporary_path(target), path)
        if _is_ours(stream.fileno(), stream.name):
            return stream
        stream.close()


def _open_new(part: str, path: StrPath) -> BinaryIO:
    try:
        return open(part, "xb", buffering=1 << 20)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise InputError(str(path), f"cannot be written (its folder: {reason})") from problem


@contextmanager
def _create_folder(target: str) -> Iterator[Path]:
    """Create a folder under a temporary name of `target`, and lock it until the block ends."""
    while True:
        part = _temporary_path(target)
        os.mkdir(part)
        if fcntl is None:
            yield Path(part)
            return
        descriptor = os.open(part, os.O_RDONLY)
        try:
            if _is_ours(descriptor, part):
                yield Path(part)
                return
        finally:
            os.close(descriptor)


def _is_ours(descriptor: int, part: str) -> bool:
    """Lock a newly created file or folder; return False if another run has locked or removed it as a leftover."""
    try:
        lock(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        return True  # the file system has no locks, so `_remove_leftovers` cannot remove anything there
    try:
        return os.path.samestat(os.stat(part), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_leftovers(target: str) -> None:
    """Remove the temporary files and folders of this target that no run has locked: killed runs left them."""
    if fcntl is None:
        return
    prefix = _prefix(target)
    with suppress(OSError), os.scandir(os.path.dirname(target) or ".") as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and not entry.is_symlink():
                with suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(part: str) -> None:
    """Remove a file or folder that no run is writing.

    Raises:
        OSError: a run is writing it, the file system has no locks, or it cannot be removed.
    """
    mode = os.lstat(part).st_mode
    # Some network file systems lock only files that are open for writing. A folder cannot be opened for writing.
    kind = os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR
    descriptor = os.open(part, kind | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        lock(descriptor)
        if stat.S_ISDIR(mode):
            shutil.rmtree(part)
        elif stat.S_ISREG(mode):
            os.unlink(part)
    finally:
        os.close(descriptor)
