"""Decide which inputs are vectors that `lastword embed` wrote, and open them; everything else is text.

Vectors are: the folder of a job, or one of its part files; a .npy, .safetensors or .jsonl file with the metadata of
`embed`, in the file or beside it; a .parquet file with this metadata.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lastword.bulk.job import ROWS, Job, UnitResult
from lastword.bulk.plan import Plan, Unit, hash_file
from lastword.cli.documents.paths import names_many
from lastword.cli.documents.written import header_of, is_job_folder, metadata_of
from lastword.cli.read import STDIN, Record, Template, scheme_of
from lastword.errors import InputError, LastwordError, count, valid_name
from lastword.vectors.lines import LinesFile
from lastword.vectors.made import Made
from lastword.vectors.matrix import MatrixFile
from lastword.vectors.parquet import ParquetVectors, open_parquet, parquet_metadata
from lastword.vectors.stored_record import TextSource

_TEXT = "text"  # the default of --text-field
_PART = re.compile(
    r"part-\d{6,}\.(parquet|npy|safetensors|jsonl)"
)  # a unit's vectors, as `Job.path` names them


class VectorFile(Protocol):
    """A file of vectors; `count` is their number, None if it is not known before they are read."""

    name: str
    count: int | None
    has_fields: bool  # whether it holds the fields of the texts' records
    has_texts: bool

    def blocks(self) -> Iterator[Tensor]:
        """Yield the stored codes [n, width], in order."""

    def records(self, rows: Sequence[int]) -> Iterator[Record]:
        """Yield the record of each of these rows, given in ascending order."""


class Found:
    """The vectors of one argument of the command: how they were made, their files, and notices about them."""

    def __init__(self, made: Made, files: list[VectorFile], notices: Iterable[str] = ()) -> None:
        self.made, self.files, self.notices = made, files, list(notices)


class _Opened(NamedTuple):
    """An opened job: its plan and results are read once, even if several of its part files are named."""

    job: Job
    units: Mapping[str, Unit]  # by the names of their files
    done: Mapping[int, UnitResult]


def find_vectors(given: Sequence[str], text_field: str) -> list[Found]:
    """Return the vectors that the arguments name, each file once; an empty list if no argument names vectors.

    Args:
        given: the paths that the user named.
        text_field: the field or column that holds the text. The default stands for the field or template that `embed`
            was given.

    Raises:
        OSError: some arguments are vectors, and another is a missing file.
        InputError: some arguments are vectors and others texts, or the vectors differ in space, precision or ranges.
        LastwordError: a file is damaged; or a job has no finished unit, or a file of it is missing or has changed.
    """
    once = {os.path.realpath(path): path for path in reversed(given)}
    paths = [path for path in given if once.get(os.path.realpath(path)) is path]
    kinds = {path: _metadata(path) for path in dict.fromkeys(paths)}
    if not any(metadata is not None for metadata in kinds.values()):
        return []
    every, jobs = list[Found](), dict[str, _Opened]()
    for path, metadata in kinds.items():
        if metadata is None:
            if scheme_of(path) is None and path != STDIN and not names_many(path):
                os.stat(path)  # a missing file gives the same OSError here as for every other input
            stored = next(valid_name(path) for path, each in kinds.items() if each is not None)
            raise InputError(
                valid_name(path),
                "texts and stored vectors cannot be searched together",
                got="a text",
                expected=f"vectors, as in {stored}",
                remedy="Search them in separate calls, or pass --texts to embed all texts again.",
            )
        if os.path.isdir(path):
            every.append(_open_job(path, text_field, jobs))
        elif not metadata:
            every.append(_open_job(os.path.dirname(path), text_field, jobs, os.path.basename(path)))
        else:
            every.append(_open_file(path, metadata, text_field))
    for each in every[1:]:
        every[0].made.check_alike(each.made)
    seen = set[str]()
    for each in every:
        each.files = [file for file in each.files if os.path.realpath(file.name) not in seen]
        seen.update(os.path.realpath(file.name) for file in each.files)
    return every


def _metadata(path: str) -> Mapping[str, object] | None:
    """Return the metadata of vectors ({} for a job's folder or a part in it); None for an input that is text."""
    if os.path.isdir(path):
        return {} if is_job_folder(path) else None
    if not os.path.isfile(path):
        return None
    ending = os.path.splitext(path)[1].lower()
    folder, name = os.path.split(path)
    if _PART.fullmatch(name) and is_job_folder(folder):
        return {}
    if ending == ".parquet":
        return _in_parquet(path)
    if ending in (".npy", ".safetensors", ".jsonl"):
        return metadata_of(path) or (header_of(path) if ending == ".jsonl" else None) or None
    return None


def _in_parquet(path: str) -> Mapping[str, object] | None:
    try:
        with open_parquet(path) as file:
            return parquet_metadata(file) or None
    except InputError:
        return None  # reading it as text gives the error


def _open_file(path: str, metadata: Mapping[str, object], text_field: str) -> Found:
    name = valid_name(path)
    made = Made.of(metadata, name)
    source = _text_source(metadata, text_field)
    texts = str(metadata.get("texts", ""))
    count = int(texts) if texts.isascii() and texts.isdecimal() and len(texts) < 16 else None
    ending = os.path.splitext(path)[1].lower()
    if ending == ".parquet":
        return Found(made, [ParquetVectors(path, made, None, source, None)])
    if ending == ".jsonl":
        header, places = bool(header_of(path)), "places" in metadata
        lines = LinesFile(path, made, count, source, header=header, places=places)
        return Found(made, [lines])
    if count is None and ending == ".npy":
        raise InputError(f"{name}.json", "damaged", got="no number of texts")
    rows = f"{path}.{ROWS}"
    if not os.path.exists(rows):  # a part that was moved out of its job's folder
        rows = f"{os.path.splitext(path)[0]}.{ROWS}"
    return Found(made, [MatrixFile(path, made, count, rows)])


def _open_job(
    path: str, text_field: str, opened: dict[str, _Opened], part: str | None = None
) -> Found:
    """Open the finished units of a job.

    Args:
        path: the job's folder.
        text_field: as for `find_vectors`.
        opened: the jobs opened so far, by their real paths.
        part: the name of the only file to open; None for all.

    Raises:
        LastwordError: no unit is finished, or a file is missing, damaged or changed.
    """
    where = valid_name(path if part is None else os.path.join(path, part))
    try:
        real = os.path.realpath(path)
        if real not in opened:
            opened[real] = _read_job(path)
        found = opened[real]
        job, settings = found.job, found.job.plan.settings
        made, source = Made.of(settings, where), _text_source(settings, text_field)
        kind, columns = settings["format"], settings["columns"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, LastwordError):
            raise
        raise InputError(valid_name(path), "its plan or a record of a unit is damaged") from error
    files: list[VectorFile] = []
    named = found.units if part is None else {part} & found.units.keys()
    units = [found.units[name] for name in named]
    for unit in units:
        result = found.done.get(unit.number)
        if result is not None:
            _check_unit(job, unit, result)
            files.append(_open_unit(str(job.path(unit)), kind, made, result.rows, source, columns))
    missing, number = len(units) - len(files), count(len(units), "unit")
    if not files and (units or part is not None):
        remedy = "Run the job first: lastword embed -o DIRECTORY/."
        raise InputError(where, "holds no vectors yet", got=f"0 of {number} done", remedy=remedy)
    unfinished = f"{where}: not finished; {missing:,} of {number} are missing"
    return Found(made, files, [unfinished] if missing else [])


def _read_job(path: str) -> _Opened:
    plan = Plan.load(Path(path))
    job = Job(Path(path), plan)
    return _Opened(job, {job.path(unit).name: unit for unit in plan.units}, job.results())


def _text_source(settings: Mapping[str, object], text_field: str) -> TextSource:
    """Return what makes the texts: the field that the user names, else what `embed` used; None if it dropped them."""
    if text_field != _TEXT:
        return text_field
    if settings.get("drop_text"):
        return None
    template = settings.get("template")
    return str(settings.get("text_field", _TEXT)) if template is None else Template(str(template))


def _open_unit(
    path: str, kind: str, made: Made, rows: int, source: TextSource, columns: Any
) -> VectorFile:
    if kind == "parquet":
        return ParquetVectors(path, made, rows, source, columns)
    if kind == "jsonl":
        return LinesFile(path, made, rows, source, header=False, places=True)
    return MatrixFile(path, made, rows, f"{os.path.splitext(path)[0]}.{ROWS}")


def _check_unit(job: Job, unit: Unit, result: UnitResult) -> None:
    """Check that the files of a finished unit have not changed; only files newer than the unit's record are read.

    Raises:
        InputError: a file cannot be read or has changed.
    """
    recorded = os.stat(job.folder / "_done" / f"{unit.number:06d}.json").st_mtime_ns
    for name, (size, expected) in result.files.items():
        path = str(job.folder / name)
        remedy = f"Check the job with: lastword embed --check {job.folder}."
        try:
            status = os.stat(path)
            same = status.st_size == size and (
                status.st_mtime_ns <= recorded or hash_file(path) == expected
            )
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
            raise InputError(valid_name(path), what, remedy=remedy) from error
        if not same:
            raise InputError(valid_name(path), "has changed since it was written", remedy=remedy)
