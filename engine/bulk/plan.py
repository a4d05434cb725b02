"""The plan of a corpus job: its input files, their division into units, and every setting that the output depends on.

The plan is made once and never changes. Later runs read it, and refuse to go on if an input file or a setting differs.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from lastword.bulk.cutting import Cut, cut_file
from lastword.cli.read import Fields, Part, Source, UrlError, open_file, scheme_of, status_of
from lastword.errors import InputError, WeightsError, count, valid_name
from lastword.weights.files.atomic import name_write_errors, replace_file
from lastword.weights.json_fields import read_object

NAME = "_plan.json"
# Settings on which only the last bits of vectors depend.
ROUNDING = {"device", "threads", "max_batch_tokens", "lastword"}
VERSION = 3  # raise this when equal plans give different files than before
_MOST_BYTES = 4 << 30  # of a plan: some ten million files or units


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file as it was when the plan was made.

    Args:
        path: its path, as named or found.
        format: as for `Source`.
        size: its number of bytes; -1 if the file system of a URL does not tell it.
        version: its time of modification in nanoseconds, or what the file system of a URL tells about the version.
        sha256: the hash of its content; "" for a URL whose file system tells the version, as reading it again is slow.
        header: the header of a table, in Latin-1; "" for other formats.
        error: why the file is left out of the job; "" if it is not left out.
    """

    path: str
    format: str
    size: int
    version: str
    sha256: str
    header: str
    error: str = ""

    def check(self) -> None:
        """Check that the file has not changed.

        Raises:
            InputError: the file is missing, cannot be read, or its content has changed.
        """
        if self.error:
            return
        remedy = "Restore the file, or start a new job in another folder."
        try:
            size, version = _status(self.path)
            if version and (size, version) == (self.size, self.version):
                return
            same = size == self.size and bool(self.sha256) and hash_file(self.path) == self.sha256
        except OSError as error:
            what = f"cannot be read ({error.strerror or error}), but the job's plan needs it"
            raise InputError(valid_name(self.path), what, remedy=remedy) from error
        if not same:
            what = "has changed since the job was planned"
            raise InputError(valid_name(self.path), what, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Slice(Cut):
    """A part of one input file; `file` is the file's index in the plan."""

    file: int


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest amount of work that is done or not done: slices of one or more files."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def records(self) -> int:
        """The number of input records."""
        return sum(each.records for each in self.slices)

    @property
    def num_bytes(self) -> int:
        """The number of input bytes; those of compressed files are counted unpacked."""
        return sum(each.stop - each.start for each in self.slices)


@dataclass(frozen=True, slots=True)
class Plan:
    """A job: what to read, and how to embed it.

    Args:
        settings: every setting that changes the output, by name.
        files: the input files.
        units: the units, in the order of the input.
    """

    settings: Mapping[str, Any]
    files: Sequence[InputFile]
    units: Sequence[Unit]

    @staticmethod
    def make(
        inputs: Iterable[Source], settings: Mapping[str, Any], unit_records: int, fields: Fields
    ) -> "Plan":
        """Read the input files, and divide them into units of about `unit_records` records.

        Args:
            inputs: the input files, local or of URLs; none is a stream.
            settings: as for `Plan`, with `delimiter` and `on_error`.
            unit_records: the number of records of a unit. A unit takes several files, if they are small.
            fields: as for `read.read`.

        Raises:
            InputError: a file changes while it is read, or cannot be read. If `on_error` is "skip", local files that
                cannot be read are left out instead, unless no record is left.
        """
        files, units, slices = list[InputFile](), list[Unit](), list[Slice]()
        records = 0  # of `slices`
        first_error = None
        for source in inputs:
            before = _seen(source)
            try:
                if source.problem is not None:
                    raise source.problem
                cuts = cut_file(source, fields, settings["delimiter"], unit_records)
            except InputError as error:
                if settings["on_error"] != "skip" or isinstance(error, UrlError):
                    raise
                first_error = first_error or error
                files.append(InputFile(source.path, source.format, 0, "", "", "", str(error)))
                continue
            files.append(_as_it_is(source, cuts.header))
            if _seen(source) != before:
                remedy = "Begin the job once the file is complete."
                raise InputError(source.name, "changes while it is read", remedy=remedy)
            for cut in cuts.cuts:
                if slices and records + cut.records > unit_records:
                    units.append(Unit(len(units), tuple(slices)))
                    slices, records = [], 0
                slices.append(Slice(**asdict(cut), file=len(files) - 1))
                records += cut.records
        if slices:
            units.append(Unit(len(units), tuple(slices)))
        if first_error is not None and not units:
            raise first_error
        return Plan(settings, files, units)

    def save(self, folder: Path) -> None:
        """Write the plan to a job's folder.

        Raises:
            InputError: it cannot be written.
        """
        units = [[astuple(each) for each in unit.slices] for unit in self.units]
        files = [
            asdict(file) | {"path": os.fsencode(file.path).decode("latin-1")} for file in self.files
        ]
        whole = {"version": VERSION, "settings": self.settings, "files": files, "units": units}
        with replace_file(folder / NAME) as stream:
            stream.write(_in_lines(whole).encode())

    def list_left_out(self, folder: Path) -> None:
        """List the input files that are left out in `_errors/files.jsonl` of a job's folder, unless there is a list.

        Raises:
            InputError: the list cannot be written.
        """
        left_out = [
            {"path": Source(file.path, file.format).name, "error": file.error}
            for file in self.files
            if file.error
        ]
        path = folder / "_errors" / "files.jsonl"
        if not left_out or path.exists():
            return
        with name_write_errors(path.parent):
            path.parent.mkdir(exist_ok=True)
        with replace_file(path) as stream:
            stream.writelines(f"{json.dumps(each)}\n".encode() for each in left_out)

    @staticmethod
    def load(folder: Path) -> "Plan":
        """Read the plan of a job's folder.

        Raises:
            InputError: the plan is of another version.
            WeightsError: there is no plan, or the file is damaged.
        """
        found = read_object(folder / NAME, WeightsError, limit=_MOST_BYTES)
        if found.get("version") != VERSION:
            remedy = (
                "Finish the job with the version of lastword that began it, or begin a new one."
            )
            raise InputError(
                str(folder / NAME),
                "is a plan of another version",
                got=str(found.get("version")),
                expected=str(VERSION),
                remedy=remedy,
            )
        files = [InputFile(**each) for each in found["files"]]
        files = [replace(file, path=os.fsdecode(file.path.encode("latin-1"))) for file in files]
        units = [
            Unit(number, tuple(Slice(*each) for each in slices))
            for number, slices in enumerate(found["units"])
        ]
        return Plan(found["settings"], files, units)

    def check_unit(self, unit: Unit) -> None:
        """Check that the input files of a unit have not changed.

        Raises:
            InputError: a file has changed, is missing or cannot be read.
        """
        for index in {each.file for each in unit.slices}:
            self.files[index].check()

    def sources(self, unit: Unit) -> list[Source]:
        """Return the inputs to read for a unit."""
        return [self._source(each) for each in unit.slices]

    def _source(self, piece: Slice) -> Source:
        file = self.files[piece.file]
        if file.format in ("whole", "html"):
            return Source(file.path, file.format)
        part = Part(piece.start, piece.stop, piece.lines_before, file.header.encode("latin-1"))
        return Source(file.path, file.format, part=part)

    def check_settings(
        self, settings: Mapping[str, Any], folder: Path, *, mixed: bool = False
    ) -> None:
        """Check that a run has the settings of the plan.

        Args:
            settings: the settings of the run.
            folder: the job's folder.
            mixed: whether settings that only change the rounding (`ROUNDING`) may differ.

        Raises:
            InputError: a setting differs; the error names the first one.
        """
        # A fingerprint differs if one of the other settings does, so the other settings are compared first.
        names = sorted(
            self.settings.keys() - (ROUNDING if mixed else set()),
            key=lambda name: (name in ("space", "run"), name),
        )
        for name in names:
            planned = self.settings[name]
            if settings.get(name) != planned:
                raise InputError(
                    str(folder),
                    f"holds a job with another {name.replace('_', ' ')}",
                    got=str(settings.get(name)),
                    expected=str(planned),
                    remedy="Pass --allow-mixed to go on all the same: vectors will differ by rounding."
                    if name in ROUNDING
                    else "Give the options with which the job was begun, or name another folder.",
                )

    def check_files(self, inputs: Iterable[Source] | None = None) -> None:
        """Check that no input file has changed, and that `inputs`, if given, are the plan's files and formats.

        Raises:
            InputError: a file has changed, or other files or formats are given.
        """
        if inputs is not None:
            given = [(os.path.realpath(source.path), source.format) for source in inputs]
            planned = [(os.path.realpath(file.path), file.format) for file in self.files]
            pairs = zip(given, planned, strict=False)
            a, b = next(((a, b) for a, b in pairs if a != b), (None, None))
            if given != planned:
                got = f"{valid_name(a[0])} as {a[1]}" if a else count(len(given), "file")
                expected = f"{valid_name(b[0])} as {b[1]}" if b else count(len(planned), "file")
                raise InputError(
                    "FILE",
                    "the job was planned with other input files or formats",
                    got=got,
                    expected=expected,
                    remedy="Name the same files, or none at all; or name another folder.",
                )
        for file in self.files:
            file.check()


def _status(path: str) -> tuple[int, str]:
    """Return the size of a file, -1 if unknown, and its version, as `InputFile` has them."""
    if scheme_of(path) is not None:
        size, version = status_of(path)
        return -1 if size is None else size, version
    status = os.stat(path)
    return status.st_size, str(status.st_mtime_ns)


def _in_lines(whole: Mapping[str, Any]) -> str:
    """Return the JSON of a plan, one line per setting, file and unit; `is_job_folder` looks at its beginning."""
    settings = _dump(whole["settings"], indent=1).replace("\n", "\n ")
    files, units = (
        ",\n  ".join(map(_dump, whole[name])).join(("[\n  ", "\n ]")) for name in ("files", "units")
    )
    return f'{{\n "version": {whole["version"]},\n "settings": {settings},\n "files": {files},\n "units": {units}\n}}\n'


def _dump(value: Any, indent: int | None = None) -> str:
    # Escaped, since the name of a file or field may have characters that UTF-8 cannot encode.
    return json.dumps(value, indent=indent)


def _seen(source: Source) -> tuple[int, str] | None:
    """Return the size and version of a local file; None for a URL, and for a file whose status cannot be read."""
    if scheme_of(source.path) is not None:
        return None
    try:
        return _status(source.path)
    except OSError:
        return None


def _as_it_is(source: Source, header: bytes) -> InputFile:
    size, version = _status(source.path)
    told = scheme_of(source.path) is not None and version
    return InputFile(
        source.path,
        source.format,
        size,
        version,
        "" if told else hash_file(source.path),
        header.decode("latin-1"),
    )


def hash_file(path: str) -> str:
    """Return the sha256 of the content of a file or URL, as 64 hex digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
