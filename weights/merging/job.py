"""Write a new model folder atomically, shard by shard; an interrupted run can be resumed.

Unfinished work is kept in the folder `.NAME.partial` next to the new folder NAME. The partial folder contains the
finished shards, a hash of the job (so that a changed job starts again) and a lock. The last step renames the finished
model to NAME. `merge.py` and `convert.py` compute the tensors.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lastword.errors import InputError, LastwordError
from lastword.weights.files.atomic import (
    check_folder,
    lock,
    name_write_errors,
    replace_file,
    sync,
    sync_tree,
)
from lastword.weights.files.header import read_header
from lastword.weights.files.shards import INDEX, SINGLE
from lastword.weights.files.writer import TensorSpecs, stream_safetensors
from lastword.weights.json_fields import read_object

SHARD_BYTES = 5_000_000_000  # the usual size in other libraries
_MAX_FACTS_BYTES = 256 * 1024 * 1024  # the angles of many models take megabytes
_LOCK = "lock"
_VERSION = 1  # raise this when equal inputs give different bytes than before

Facts = dict[str, Any]


class Job(Protocol):
    """A model to write: its tensors in order, and the other files of its folder."""

    specs: TensorSpecs  # dtype and shape of each tensor, in the order of writing
    identity: dict[str, object]  # everything that the result depends on, as JSON

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Compute one tensor, piece by piece; a piece is valid until the next one is requested."""

    def facts(self, name: str) -> Facts:
        """Return JSON values to report about a tensor; called after the tensor's last piece."""

    def finish(self, folder: Path) -> None:
        """Write all files other than the weights, with `config.json` last."""


def write_model(
    job: Job,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], object] = lambda _: None,
    notice: Callable[[str], object] = lambda _: None,
) -> list[Facts]:
    """Write a job's model folder.

    Args:
        job: the model to write.
        out: the new folder; it may exist if it is empty.
        shard_bytes: maximum size of the weights per file; a larger tensor gets its own file.
        progress: called with the number of bytes just written, or found to be written by an earlier run.
        notice: called with messages for the user.

    Returns:
        One dictionary of facts per tensor, as given by `job.facts`, in the order of `job.specs`.

    Raises:
        InputError: the folder is not empty, another run is writing to it, or it cannot be written.
        WeightsError: the job cannot read or combine its input tensors.
    """
    shards = _split(job.specs, shard_bytes)
    _check_free(out)
    place = out.resolve() if out.is_symlink() else out  # a link to an empty folder stays a link
    partial = place.parent / f".{place.name}.partial"
    with name_write_errors(out), _lock(partial):
        with _keep_finished(partial, shards, notice):
            _check_free(out)  # again: another run may just have finished
            _resume(partial, job, shards, notice)
            done = [_shard(partial, job, *shard, progress) for shard in shards.items()]
            _finish(partial, job, place, shards)
        shutil.rmtree(partial, ignore_errors=True)
    return [facts for shard in done for facts in shard]


def _split(specs: TensorSpecs, shard_bytes: int) -> dict[str, list[str]]:
    """Split the tensors, in order, into shards; return the tensor names by file name."""
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name, spec in specs.items():
        size = spec.num_bytes
        if size > room and groups[-1]:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": g for i, g in enumerate(groups, 1)}


def total_bytes(specs: TensorSpecs) -> int:
    """Return the number of bytes that tensors take in a file."""
    return sum(spec.num_bytes for spec in specs.values())


def _check_free(out: Path) -> None:
    """Refuse an output that exists and is not an empty folder, or to which the finished folder cannot be renamed."""
    if out.is_dir() and not any(out.iterdir()):
        if os.path.ismount(os.path.realpath(out)):
            remedy = "Name a folder inside it."
            raise InputError(str(out), "is a mount point", expected="a new folder", remedy=remedy)
        if out.samefile("."):
            remedy = "Name another one."
            raise InputError(str(out), "is the current folder", expected="a new one", remedy=remedy)
        return
    if out.exists() or out.is_symlink():
        remedy = "Name another one."
        raise InputError(str(out), "exists already", expected="a new folder", remedy=remedy)
    check_folder(out)


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """Lock the folder of unfinished work for the `with` block; a crash of the process also releases the lock."""
    _open_folder(partial)
    # O_NOFOLLOW: the target of a link would be locked or created elsewhere.
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
    descriptor = os.open(partial / _LOCK, flags, 0o666)
    try:
        try:
            lock(descriptor)
        except BlockingIOError:
            remedy = "Wait for that run or stop it."
            what = "another run is writing this model"
            raise InputError(str(partial), what, remedy=remedy) from None
        yield
    finally:
        os.close(descriptor)


def _open_folder(partial: Path) -> None:
    """Create the folder of unfinished work, or take over an earlier run's.

    Any other folder of that name is refused, because the folder of unfinished work may be emptied.
    """
    with suppress(FileExistsError):
        partial.mkdir()
        return
    if stat.S_ISDIR(partial.lstat().st_mode):
        place = partial / _LOCK
        if place.is_file() and not place.is_symlink():
            return
        if not any(partial.iterdir()):  # the earlier run was killed before it created the lock
            return
    raise InputError(
        str(partial),
        "exists, but is not the unfinished work of an earlier run",
        expected="a name that nothing else has",
        remedy="Remove it, or name another output.",
    )


@contextmanager
def _keep_finished(
    partial: Path, shards: dict[str, list[str]], notice: Callable[[str], object]
) -> Iterator[None]:
    """If the `with` block fails, keep its finished files for the next run; if there are none, remove `partial`."""
    try:
        yield
    except BaseException:
        if kept := _finished_shards(partial, shards):
            notice(f"{partial}: keeps {len(kept)} of {len(shards)} files; run again to continue")
        else:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _finished_shards(partial: Path, shards: dict[str, list[str]]) -> list[str]:
    return [name for name in shards if (partial / f"{name}.facts").is_file()]


def _resume(
    partial: Path, job: Job, shards: dict[str, list[str]], notice: Callable[[str], object]
) -> None:
    """Keep the finished files of an interrupted run of the same job, and remove everything else."""
    stated = json.dumps([_VERSION, job.identity, shards], sort_keys=True)
    identity = hashlib.sha256(stated.encode()).hexdigest()
    state, model = partial / "job.json", partial / "model"
    if state.is_file():
        with suppress(LastwordError):
            whole = model.is_dir() and not model.is_symlink()
            if read_object(state).get("job") == identity and whole:
                kept = _finished_shards(partial, shards)
                for stray in set(model.iterdir()) - {model / name for name in kept}:
                    _remove(stray)
                notice(f"{partial}: resumes an unfinished run, {len(kept)} of {len(shards)} files")
                return
        notice(f"{partial}: contains an unfinished run of a different job; starts again")
    for stray in partial.iterdir():
        if stray.name != _LOCK:
            _remove(stray)
    needed = total_bytes(job.specs)
    free = shutil.disk_usage(partial).free
    if free < needed:
        what, got = "not enough free space on the disk", f"{free:,} bytes free"
        raise InputError(str(partial), what, got=got, expected=f"{needed:,}")
    model.mkdir()
    _write_json(state, {"job": identity})


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _shard(
    partial: Path, job: Job, file: str, names: list[str], progress: Callable[[int], object]
) -> list[Facts]:
    """Write one file of weights, unless an earlier run completed it, and return the facts of its tensors.

    After the weights, the facts are stored in a file of their own, which marks the file of weights as complete.
    """
    path, state = partial / "model" / file, partial / f"{file}.facts"
    specs = {name: job.specs[name] for name in names}
    with suppress(LastwordError):  # a damaged file of an earlier run is written again
        if state.is_file() and read_header(path).keys() == set(names):
            found = read_object(state, limit=_MAX_FACTS_BYTES).get("facts")
            if isinstance(found, list) and len(found) == len(names):
                progress(total_bytes(specs))
                return found

    def pieces(name: str) -> Iterator[Tensor]:
        for piece in job.pieces(name):
            yield piece
            progress(piece.nbytes)

    stream_safetensors(path, specs, pieces, {"format": "pt"})
    facts = [job.facts(name) for name in names]
    _write_json(state, {"facts": facts})
    return facts


def _finish(partial: Path, job: Job, out: Path, shards: dict[str, list[str]]) -> None:
    model = partial / "model"
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        size = total_bytes(job.specs)
        _write_json(
            model / INDEX,
            {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))},
        )
    job.finish(model)
    sync_tree(model)
    model.rename(out)
    sync(out.parent)


def _write_json(path: Path, value: object) -> None:
    with replace_file(path) as file:
        file.write(f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode())
