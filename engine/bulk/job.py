"""Run the units of a job: claim one, write its files under temporary names, rename them, record that it is done.

A unit's files have fixed names and their content depends on the plan only. So whatever is interrupted, and however many
processes work on a folder, the result is the same: a unit is done twice at worst, with the same bytes.

    DIR/_plan.json          the plan
    DIR/part-000012.parquet the vectors of unit 12; for .npy and .safetensors also part-000012.rows.jsonl
    DIR/_errors/000012.jsonl the records of unit 12 that were left out, if there are any
    DIR/_errors/files.jsonl the input files that were left out, if there are any
    DIR/_done/000012.json   its numbers of rows and tokens, and the sha256 of its files
    DIR/_claims/000012      a process that works on unit 12 has locked this file
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

from lastword.bulk.plan import NAME, Plan, Unit, hash_file
from lastword.errors import InputError
from lastword.weights.files.atomic import lock, name_write_errors, replace_file, sync
from lastword.weights.json_fields import read_object

ROWS = "rows.jsonl"
_PLAN_LOCK = Path("_claims", "plan")


@dataclass(slots=True)
class UnitResult:
    """The result of a unit.

    Args:
        rows: the number of vectors.
        errors: the number of records left out because of an error.
        tokens: the number of tokens requested, as in `Report`.
        computed: the number of tokens computed, as in `Report`.
        cached: the number of tokens from the prompt cache, as in `Report`.
        cut: the number of texts cut to the maximum length.
        unknown: the number of texts with words that the model does not know, as in `Report`.
        blank: the number of blank texts, embedded or left out.
        skipped: the number of records skipped by --where.
        batch_tokens: the maximum number of tokens per batch: that of the job, or less if memory ran out.
        files: the size and sha256 of each of its files, by name.
    """

    rows: int = 0
    errors: int = 0
    tokens: int = 0
    computed: int = 0
    cached: int = 0
    cut: int = 0
    unknown: int = 0
    blank: int = 0
    skipped: int = 0
    batch_tokens: int = 0
    files: dict[str, list[int | str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The open files of one unit: its vectors, the rows beside them (None if not needed), and its errors."""

    main: BinaryIO
    rows: BinaryIO | None
    errors: BinaryIO


def refuse_other_files(folder: Path) -> None:
    """Refuse a folder that has files but no plan; files that an interrupted run may leave do not count.

    Raises:
        InputError: the folder has other files and no plan.
    """
    if folder.exists() and not (folder / NAME).exists():
        others = [path for path in folder.iterdir() if path.name != "_claims"]
        if any(not path.name.startswith(".lastword-") for path in others):
            raise InputError(
                str(folder),
                "is not empty and holds no job",
                expected="a new folder, or one of an earlier job",
                remedy="Name another folder.",
            )


@contextmanager
def planning(folder: Path) -> Iterator[None]:
    """Create a job's folder, if need be, and keep other processes from planning in it during the `with` block.

    Raises:
        InputError: the folder cannot be created, or holds other files and no plan.
    """
    new = not folder.exists()
    descriptor = _lock_plan(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(folder / _PLAN_LOCK)
        os.close(descriptor)
        if new and not (folder / NAME).exists():  # nothing is planned: leave no folder behind
            with suppress(OSError):
                (folder / _PLAN_LOCK).parent.rmdir()
                folder.rmdir()


def _lock_plan(folder: Path) -> int:
    """Lock the file that keeps others from planning; return its descriptor."""
    path = folder / _PLAN_LOCK
    while True:
        refuse_other_files(folder)
        with name_write_errors(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except (
                FileNotFoundError
            ):  # the run that made the folder has just removed it, since its planning failed
                continue
        try:
            lock(descriptor, wait=True)
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass  # the run that held the lock has removed the file
        except OSError:
            return descriptor  # a file system without locks
        os.close(descriptor)


class BatchesTooLargeError(Exception):
    """A batch of a unit did not fit in the device's memory."""


# Writes the files of a unit, with a maximum number of tokens per batch.
Write = Callable[[Unit, Outputs, int], UnitResult]
# Takes a unit that is done, its result, and the seconds it took.
Finished = Callable[[Unit, UnitResult, float], object]


class Job:
    """A job's folder.

    Args:
        folder: the folder, which has a plan.
        plan: the plan.
        batch_tokens: the maximum number of tokens per batch; None for the plan's.
    """

    def __init__(self, folder: Path, plan: Plan, batch_tokens: int | None = None) -> None:
        self.folder, self.plan, self._batch_tokens = folder, plan, batch_tokens
        self._format: str = plan.settings["format"]

    def path(self, unit: Unit) -> Path:
        """Return the path of a unit's vectors."""
        return self.folder / f"part-{unit.number:06d}.{self._format}"

    def results(self) -> dict[int, UnitResult]:
        """Return the recorded results of units, by number; their files may be missing or changed since.

        Raises:
            LastwordError: a record is damaged.
        """
        found = (self.folder / "_done").glob("*.json")
        return {int(path.stem): UnitResult(**read_object(path)) for path in sorted(found)}

    def whole(self, results: Mapping[int, UnitResult]) -> dict[int, UnitResult]:
        """Return the results whose files all exist and have the size that they were written with."""
        return {number: each for number, each in results.items() if self._is_whole(each)}

    def _is_whole(self, result: UnitResult) -> bool:
        """Return whether all files of a unit exist and have the size that they were written with."""
        for name, (size, _) in result.files.items():
            try:
                if (self.folder / name).stat().st_size != size:
                    return False
            except OSError:
                return False
        return True

    def _is_done(self, unit: Unit) -> bool:
        record = self._record(unit)
        return record.exists() and self._is_whole(UnitResult(**read_object(record)))

    def run(
        self,
        units: Iterable[Unit],
        write: Write,
        finished: Finished,
        *,
        ignore_claims: bool = False,
    ) -> list[Unit]:
        """Do the units that are neither done nor claimed by another process.

        Args:
            units: the units to do, in this order.
            write: writes the files of a unit. If it raises `BatchesTooLargeError`, it is called again with half as many
                tokens per batch: the content of the files depends on that number, not on when memory ran out.
            finished: called for each unit after it is done, with its result and the seconds it took.
            ignore_claims: whether to do units that another process seems to be working on: the lock of a process on
                a machine that was lost can last for minutes.

        Returns:
            The units that other processes are working on.

        Raises:
            InputError: an output cannot be written, or `write` raised it.
        """
        for name in ("_done", "_errors"):
            with name_write_errors(self.folder / name):
                (self.folder / name).mkdir(exist_ok=True)
        claimed = []
        for unit in units:
            with self._claim(unit) as ours:
                if not (ours or ignore_claims):
                    claimed.append(unit)
                elif not self._is_done(unit):
                    # A record of files that are gone must not be taken for a record of the new files.
                    self._record(unit).unlink(missing_ok=True)
                    began = perf_counter()
                    result = self._do(unit, write)
                    finished(unit, result, perf_counter() - began)
        return claimed

    def _do(self, unit: Unit, write: Write) -> UnitResult:
        batch_tokens: int = self._batch_tokens or self.plan.settings["max_batch_tokens"]
        while True:
            try:
                return self._attempt(unit, write, batch_tokens)
            except BatchesTooLargeError:
                batch_tokens = max(1, batch_tokens // 2)

    def _attempt(self, unit: Unit, write: Write, batch_tokens: int) -> UnitResult:
        main, errors = self.path(unit), self.folder / "_errors" / f"{unit.number:06d}.jsonl"
        rows = main.with_suffix(f".{ROWS}") if self._format in ("npy", "safetensors") else None
        # The files appear in the reverse of this order: the vectors last.
        with ExitStack() as files:
            main_out = files.enter_context(replace_file(main))
            rows_out = None if rows is None else files.enter_context(replace_file(rows))
            errors_out = files.enter_context(replace_file(errors))
            result = write(unit, Outputs(main_out, rows_out, errors_out), batch_tokens)
        result.batch_tokens = batch_tokens
        if result.errors:
            with name_write_errors(errors):
                sync(errors.parent)
        else:
            errors.unlink(missing_ok=True)  # another process may have done the same unit
        # If the machine loses power, a record must not outlive the names of the files that it is about.
        with name_write_errors(main):
            sync(self.folder)
        written = (main, rows, errors if result.errors else None)
        paths = [path for path in written if path is not None]
        result.files = {
            str(path.relative_to(self.folder)): [path.stat().st_size, hash_file(str(path))]
            for path in paths
        }
        with replace_file(self._record(unit)) as record:
            record.write(json.dumps(asdict(result)).encode())
        return result

    def _record(self, unit: Unit) -> Path:
        return self.folder / "_done" / f"{unit.number:06d}.json"

    @contextmanager
    def _claim(self, unit: Unit) -> Iterator[bool]:
        """Lock a unit for the `with` block; yield False if another process has locked it."""
        path = self.folder / "_claims" / f"{unit.number:06d}"
        with name_write_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                lock(descriptor)
            except BlockingIOError:
                yield False
                return
            except OSError:
                pass  # the file system has no locks: a unit may be done twice, with the same bytes
            yield True
            with suppress(OSError):
                os.unlink(path)
        finally:
            os.close(descriptor)

    def check(self, results: Mapping[int, UnitResult]) -> Iterator[str]:
        """Yield one line for each fault: a unit that is not done, or a file that is missing or has changed.

        Args:
            results: as from `results`.
        """
        for unit in self.plan.units:
            result = results.get(unit.number)
            if result is None:
                yield f"unit {unit.number} is not done"
                continue
            for name, (_, expected) in result.files.items():
                path = self.folder / name
                if not path.exists():
                    yield f"{path} is missing"
                elif hash_file(str(path)) != expected:
                    yield f"{path} has changed since it was written"
