"""A new model folder, written shard by shard: whole or not there, and taken up again after an interruption.

The work lies in `.NAME.partial` beside the new folder: the shards so far, what the work is (so that a changed
one starts anew) and a lock. The last step renames the finished model to its place. Knows nothing about how
tensors are made: `merge.py` and `convert.py` say that.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lastword.errors import InputError, LastwordError
from lastword.weights.files.atomic import sync, sync_tree, whole_file, writing
from lastword.weights.files.header import read_header
from lastword.weights.files.shards import INDEX, SINGLE
from lastword.weights.files.writer import TensorSpecs, stream_safetensors
from lastword.weights.json_fields import read_object

SHARD_BYTES = 5_000_000_000  # as the libraries of the field cut them
_VERSION = 1  # raise it when equal inputs give other bytes than before

Facts = dict[str, Any]


class Job(Protocol):
    """What is to be written: the tensors in their order, and what else goes into the folder."""

    specs: TensorSpecs
    identity: dict[str, object]  # all that the result depends on, as JSON

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Make one tensor, piece by piece; a piece holds until the next is asked for."""

    def facts(self, name: str) -> Facts:
        """Say what is worth knowing about a tensor whose pieces have been made, as JSON."""

    def finish(self, folder: Path) -> None:
        """Write the configuration and everything else beside the weights; `config.json` last."""


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
        job: what to write.
        out: the new folder; an empty one may be there.
        shard_bytes: weights per file, at most; a larger tensor has a file of its own.
        progress: called with the bytes written, or found written by an earlier run.
        notice: called with what the user should know.

    Returns:
        The facts of every tensor, in order.

    Raises:
        InputError: the folder is there, is being written by another run, or cannot be written.
        WeightsError: from the job.
    """
    shards = _cut(job.specs, shard_bytes)
    _check_free(out)
    place = out.resolve() if out.is_symlink() else out  # a link to an empty folder stays one
    partial = place.parent / f".{place.name}.partial"
    with writing(out), _locked(partial):
        with _kept_or_gone(partial, shards, notice):
            _check_free(out)  # once more: another run may just have finished
            _take_up(partial, job, shards, notice)
            done = [_shard(partial, job, *shard, progress) for shard in shards.items()]
            _finish(partial, job, place, shards)
        shutil.rmtree(partial, ignore_errors=True)
    return [facts for shard in done for facts in shard]


def _cut(specs: TensorSpecs, shard_bytes: int) -> dict[str, list[str]]:
    """Fill shards in the tensors' order: file name → its tensors."""
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
    """Sum the bytes that tensors take in a file."""
    return sum(spec.num_bytes for spec in specs.values())


def _check_free(out: Path) -> None:
    """Refuse, before the work, a place that the finished folder could not be renamed to."""
    if out.is_dir() and not any(out.iterdir()):
        if os.path.ismount(os.path.realpath(out)):
            remedy = "Name one inside it."
            raise InputError(str(out), "is a mount point", expected="a new folder", remedy=remedy)
        if out.samefile("."):
            remedy = "Name another one."
            raise InputError(str(out), "is the current folder", expected="a new one", remedy=remedy)
        return
    if out.exists() or out.is_symlink():
        remedy = "Name another one."
        raise InputError(str(out), "is there already", expected="a new folder", remedy=remedy)
    if not out.parent.is_dir():
        what = f"cannot be written ({out.parent} is no folder)"
        raise InputError(str(out), what, remedy="Make it first.")


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the work's folder; the lock ends with the process, however that ends."""
    partial.mkdir(exist_ok=True)
    with (partial / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "Wait for it or stop it."
            raise InputError(
                str(partial), "another run is writing this model", remedy=remedy
            ) from None
        yield


@contextmanager
def _kept_or_gone(
    partial: Path, shards: dict[str, list[str]], notice: Callable[[str], object]
) -> Iterator[None]:
    """Leave an interrupted run's finished files for the next one, and nothing where none is finished."""
    try:
        yield
    except BaseException:
        if kept := _finished(partial, shards):
            notice(f"{partial}: keeps {len(kept)} of {len(shards)} files; run again to go on")
        else:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _finished(partial: Path, shards: dict[str, list[str]]) -> list[str]:
    return [name for name in shards if (partial / f"{name}.facts").is_file()]


def _take_up(
    partial: Path, job: Job, shards: dict[str, list[str]], notice: Callable[[str], object]
) -> None:
    """Keep what an interrupted run of the same job left behind, and remove everything else."""
    stated = json.dumps([_VERSION, job.identity, shards], sort_keys=True)
    identity = hashlib.sha256(stated.encode()).hexdigest()
    state, model = partial / "job.json", partial / "model"
    if state.is_file():
        with suppress(LastwordError):
            if read_object(state).get("job") == identity and model.is_dir():
                kept = _finished(partial, shards)
                for stray in set(model.iterdir()) - {model / name for name in kept}:
                    _remove(stray)
                notice(f"{partial}: takes up an unfinished run, {len(kept)} of {len(shards)} files")
                return
        notice(f"{partial}: holds an unfinished run of another job; starts anew")
    for stray in partial.iterdir():
        if stray.name != "lock":
            _remove(stray)
    needed = total_bytes(job.specs)
    free = shutil.disk_usage(partial).free
    if free < needed:
        what, got = "too little room on the disk", f"{free:,} bytes free"
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
    """Write one file of weights, or find it written; its facts, written last, say that it is whole."""
    path, state = partial / "model" / file, partial / f"{file}.facts"
    specs = {name: job.specs[name] for name in names}
    with suppress(LastwordError):  # damaged remains are written once more
        if state.is_file() and read_header(path).keys() == set(names):
            found: list[Facts] = read_object(state)["facts"]
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
    with whole_file(path) as file:
        file.write(f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode())
