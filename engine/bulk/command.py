"""`lastword embed FILES -o DIRECTORY/`: plan a corpus job, run it, continue it or check it."""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lastword.bulk.estimate import estimate
from lastword.bulk.job import (
    BatchesTooLargeError,
    Finished,
    Job,
    Outputs,
    UnitResult,
    planning,
    refuse_other_files,
)
from lastword.bulk.parquet import OWN_COLUMNS, ParquetFile, column_types, fitting_ids
from lastword.bulk.plan import NAME, Plan, Unit
from lastword.bulk.progress import RunProgress
from lastword.cli import console, options, read, write
from lastword.cli.commands.embed import TABLE, UNIT_RECORDS, Work, check_vector_options
from lastword.cli.failures import Failures
from lastword.errors import InputError, count

if TYPE_CHECKING:
    from lastword.bulk.postgres import PostgresTable
    from lastword.embedder import Embedder

_SAMPLED_FILES = 100
_SAMPLE = 1000  # records whose fields decide the types of Parquet columns
Advance = Callable[[int], None]
DoAll = Callable[[Sequence[Unit], Finished, Advance], list[Unit]]


def run(args: argparse.Namespace) -> int:
    """Begin or continue a job, check it or, with --dry-run, estimate it; return the exit status."""
    _refuse_options(args)
    folder = Path(args.output)
    if args.check:
        if args.files:
            remedy = "Leave the input files out; they are not read."
            raise InputError(
                "--check", "takes a job's folder only", got=args.files[0], remedy=remedy
            )
        if not (folder / NAME).exists():
            raise InputError(str(folder), "holds no job", expected=f"a folder with {NAME}")
        return _check(Job(folder, Plan.load(folder)))
    refuse_other_files(folder)
    args.on_error, args.with_places = args.on_error or "skip", True
    output_format = args.format or "parquet"
    check_vector_options(args, output_format, OWN_COLUMNS if output_format == "parquet" else ())
    given = bool(args.files) or not (folder / NAME).exists()
    inputs = options.find_inputs(args) if given else []
    _refuse_streams(args, inputs)
    if args.ray is not None:
        from lastword.bulk import ray_workers

        return ray_workers.run(args, folder, inputs)
    with closing(options.open_embedder(args)) as embedder:
        if args.dry_run:
            work = Work(args, output_format, embedder)
            plan = _plan(args, folder, inputs, work, embedder)
            if (folder / NAME).exists():
                job = Job(folder, plan)
                done = job.whole(job.results())
                console.print_lines([_resume_line(job, len(done)), "what is left to do:"])
                plan = replace(plan, units=[unit for unit in plan.units if unit.number not in done])
            lines = estimate(plan, embedder, work, world=args.world, price=args.hourly_price)
            for line in lines:
                console.print_lines([line])
            return 0
        job, writer = prepare(args, folder, inputs, embedder)
        console.say_all(embedder.notices, quiet=args.quiet)

        def do_here(todo: Sequence[Unit], finished: Finished, advance: Advance) -> list[Unit]:
            writer.advance = advance
            with closing(writer.kept):
                return job.run(todo, writer.write_unit, finished)

        return run_units(args, job, do_here)


def prepare(
    args: argparse.Namespace, folder: Path, inputs: Sequence[read.Source], embedder: "Embedder"
) -> tuple[Job, "UnitWriter"]:
    """Make a folder's plan, or check that this process fits the existing one; return the job and its writer.

    Args:
        args: the command's arguments.
        folder: the job's folder.
        inputs: the input files; none if the folder has a plan that names them.
        embedder: the open model.

    Raises:
        InputError: the plan has other settings, or an input file has changed.
    """
    work = Work(args, args.format or "parquet", embedder)
    with planning(folder):
        plan = _plan(args, folder, inputs, work, embedder)
        if not (folder / NAME).exists():
            plan.save(folder)
    plan.list_left_out(folder)
    # If --max-batch-tokens is given, it differs from the plan's number only with --allow-mixed.
    tokens = None if args.max_batch_tokens is None else embedder.max_batch_tokens
    job = Job(folder, plan, tokens)
    return job, UnitWriter(args, job, work, embedder)


def _plan(
    args: argparse.Namespace,
    folder: Path,
    inputs: Sequence[read.Source],
    work: Work,
    embedder: "Embedder",
) -> Plan:
    """Return the folder's plan, after checking that it fits the arguments and files, or a new one."""
    settings = _settings(args, work, embedder)
    if (folder / NAME).exists():
        plan = Plan.load(folder)
        settings["columns"] = plan.settings["columns"]
        if args.unit_records is None:
            settings["unit_records"] = plan.settings["unit_records"]
        if args.max_batch_tokens is None:  # on a GPU the default depends on its free memory
            settings["max_batch_tokens"] = plan.settings["max_batch_tokens"]
        plan.check_settings(settings, folder, mixed=args.allow_mixed)
        plan.check_files(inputs or None)
        return plan
    plan = Plan.make(inputs, settings, settings["unit_records"], work.fields)
    work.begin(Failures(skip=True, never=(read.ReadError,)))
    good = [source for source, file in zip(inputs, plan.files, strict=True) if not file.error]
    columns = column_types(_sample(work, good), args.vector_field, args.id_field)
    return replace(plan, settings=settings | {"columns": columns})


def _sample(work: Work, inputs: Sequence[read.Source]) -> Iterator[read.Record]:
    """Yield the first records of the input files: about 1,000, from up to 100 files."""
    some = inputs[:: max(1, -(-len(inputs) // _SAMPLED_FILES))]
    for source in some:
        yield from islice(work.records([source], None), -(-_SAMPLE // len(some)))


def run_units(args: argparse.Namespace, job: Job, do_all: DoAll) -> int:
    """Do this run's share of the units that are missing, with a progress bar and a summary; return the exit status.

    Args:
        args: the command's arguments.
        job: the job.
        do_all: does the units that it is given, calls `finished` for each and `advance` with bytes of input, and
            returns the units that other processes are working on.
    """
    from lastword.progress import progress_bar

    table = None
    if args.to is not None:  # before the work, so that a wrong address costs nothing
        from lastword.bulk.postgres import PostgresTable

        table = PostgresTable(args.to, args.table, job.plan.settings, args.vector_field)
    recorded = job.results()
    done = job.whole(recorded)
    if again := len(recorded) - len(done):
        what = "the files are missing, or their size has changed"
        console.say_all([f"{count(again, 'unit')} to do again: {what}"], quiet=args.quiet)
    mine = job.plan.units[args.rank :: args.world]
    todo = [unit for unit in mine if unit.number not in done]
    console.say_all([_resume_line(job, len(done))] if done else [], quiet=args.quiet)
    progress = RunProgress(job, todo, len(done), lines=args.json)
    show = console.shows_progress(quiet=args.quiet)
    size = sum(unit.num_bytes for unit in todo)
    with progress_bar(size, show=show, unit="B", what="Embedding") as advance:
        claimed = do_all(todo, progress.finish_unit, advance)
    summary = progress.summary(claimed, skip_blank=args.skip_blank)
    console.say_all(summary, quiet=args.quiet)
    if table is not None:
        _load(args, job, table)
    return 0


def _load(args: argparse.Namespace, job: Job, table: "PostgresTable") -> None:
    """Load the units that are done into the table of --to."""
    from lastword.progress import progress_bar

    results = job.whole(job.results())
    show = console.shows_progress(quiet=args.quiet)
    with (
        closing(table),
        progress_bar(len(results), show=show, unit=" units", what="Loading") as advance,
    ):
        rows = table.load(job, results, lambda _: advance(1))
    done = f"{count(rows, 'row')} loaded" if rows else "everything was loaded before"
    console.say_all([f"table {args.table}: {done}"], quiet=args.quiet)


class UnitWriter:
    """Embeds the records of a unit and writes its files."""

    def __init__(
        self, args: argparse.Namespace, job: Job, work: Work, embedder: "Embedder"
    ) -> None:
        self._args, self._job, self._work, self._embedder = args, job, work, embedder
        self.advance: Advance = lambda _: None
        self.kept = read.KeptOpen()

    def write_unit(self, unit: Unit, outputs: Outputs, batch_tokens: int) -> UnitResult:
        """Write the files of a unit, as `job.Write` describes it."""
        name = str(self._job.path(unit))
        failures = Failures(
            skip=self._args.on_error == "skip",
            out=outputs.errors,
            name=f"{name}: its errors",
            never=(read.ReadError,),  # the plan could read the file, so another run may too
        )
        self._work.begin(failures)
        # Memory pressure in one unit must not change the batches, and so the last bits, of the next.
        self._embedder.max_batch_tokens = batch_tokens
        budget = self._embedder.loop.budget
        failed_before = budget.failures
        places = None if outputs.rows is None else self._work.places(outputs.rows, name)
        self._job.plan.check_unit(unit)
        inputs = self._job.plan.sources(unit)
        meter = read.Meter(inputs)
        writer = self._writer(outputs, name)
        on_rows = writer.note_rows if isinstance(writer, ParquetFile) else None
        shown = 0

        def advance(size: int) -> None:
            nonlocal shown
            size = min(size, unit.num_bytes - shown)  # headers of tables are read for every part
            shown += size
            self.advance(size)
            if budget.failures > failed_before:
                self.advance(-shown)
                raise BatchesTooLargeError

        found = self._work.records(inputs, meter, self.kept)
        records: Iterator[read.Record] = found
        kind = self._job.plan.settings["columns"].get("id")
        if on_rows is not None and kind is not None:
            records = fitting_ids(records, kind, self._args.id_field, failures.leave_out_line)
        with closing(found), closing(writer) if isinstance(writer, ParquetFile) else nullcontext():
            report = self._work.embed(
                records, writer, places, meter, on_rows=on_rows, advance=advance
            )
        self._job.plan.check_unit(unit)
        advance(unit.num_bytes)
        if places is not None:
            places.finish()
        return UnitResult(
            rows=report.texts,
            errors=failures.count,
            tokens=report.tokens_requested,
            computed=report.tokens_computed,
            cached=report.tokens_cached,
            cut=report.cut,
            unknown=report.unknown,
            blank=self._work.blanks.count,
            skipped=self._work.fields.skipped,
        )

    def _writer(self, outputs: Outputs, name: str) -> write.Writer:
        if self._job.plan.settings["format"] != "parquet":
            return self._work.writer(outputs.main, name)
        layout, dim = write.ELEMENT_TYPES[self._args.precision], self._embedder.dim
        return ParquetFile(
            outputs.main,
            name,
            self._job.plan.settings["columns"],
            self._args.vector_field,
            self._args.precision,
            dim // layout.packed,
            self._work.metadata,
            self._args.id_field,
        )


def _settings(args: argparse.Namespace, work: Work, embedder: "Embedder") -> dict[str, Any]:
    """Return everything besides the input files that the output depends on."""
    import torch

    device = embedder.info.devices[0].type
    return {
        **work.metadata,
        "format": args.format or "parquet",
        "text_field": args.text_field,
        "template": args.template,
        "where": args.where,
        "id_field": args.id_field,
        "drop_text": args.drop_text,
        "delimiter": args.delimiter,
        "vector_field": args.vector_field,
        "skip_blank": args.skip_blank,
        "on_error": args.on_error,
        "on_long": args.on_long,
        "device": device,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "max_batch_tokens": embedder.max_batch_tokens,
        "unit_records": args.unit_records or UNIT_RECORDS,
    }


def _refuse_options(args: argparse.Namespace) -> None:
    """Refuse options that do not fit a job."""
    for value, option, what in (
        (args.header, "--header", "is for stdout and pipes"),
        (args.save_ranges, "--save-ranges", "needs a file as output"),
        (args.errors, "--errors", "is not needed: a job lists them in _errors/ in its folder"),
    ):
        if value:
            raise InputError(option, what, got=f"-o {args.output}", remedy="Leave it out.")
    if args.hourly_price is not None and not args.dry_run:
        raise InputError("--hourly-price", "is for --dry-run", remedy="Add --dry-run.")
    if args.table != TABLE and args.to is None:
        raise InputError(
            "--table", "is for --to", remedy="Add --to postgresql://USER@HOST/DATABASE."
        )
    for other, name, unused in (
        (args.dry_run, "--dry-run", ("rank", "json")),
        (
            args.check,
            "--check",
            ("dry_run", "rank", "world", "json", "allow_mixed", "unit_records"),
        ),
    ):
        for each in unused if other else ():
            if getattr(args, each) not in (None, False, 1 if each == "world" else None):
                option = f"--{each.replace('_', '-')}"
                raise InputError(option, f"does not fit {name}", remedy="Leave one of them out.")
    _refuse_ray_options(args)
    _refuse_database(args)
    if not 0 <= args.rank < args.world:
        expected = f"0 to {args.world - 1}, as --world {args.world} says"
        raise InputError("--rank", "out of range", got=str(args.rank), expected=expected)


def _refuse_ray_options(args: argparse.Namespace) -> None:
    """Refuse options that do not fit --ray, options that need it, and an invalid address of a cluster."""
    if args.ray is None:
        if args.cores_per_model is not None:
            remedy = "Without it, OMP_NUM_THREADS sets the number of threads."
            raise InputError("--cores-per-model", "is for --ray", remedy=remedy)
        return
    for value, option, why in (
        (args.world != 1, "--world", "Ray shares the units out"),
        (args.dry_run, "--dry-run", "does not use a cluster"),
        (args.check, "--check", "does not use a cluster"),
    ):
        if value:
            raise InputError(option, why, got="--ray", remedy="Leave one of them out.")
    given = args.ray or os.environ.get("RAY_ADDRESS", "")
    if not re.fullmatch(r"|auto|local|[^/]+:\d+", given):
        raise InputError(
            "--ray" if args.ray else "RAY_ADDRESS",
            "is not the address of a Ray cluster",
            got=repr(given),
            expected="HOST:PORT, auto, local or nothing",
            remedy="Name the files before --ray." if args.ray else None,
        )
    args.ray = given
    if args.device not in (None, "cpu", "cuda"):
        remedy = "Ray chooses a GPU for each model."
        expected = "cpu or cuda"
        raise InputError(
            "--device", "does not fit --ray", got=args.device, expected=expected, remedy=remedy
        )


def _refuse_database(args: argparse.Namespace) -> None:
    """Refuse a --to that is not a database, or that does not fit the format, --dry-run or --check."""
    if args.to is None:
        return
    if not args.to.startswith(("postgresql://", "postgres://")):
        expected = "postgresql://USER@HOST/DATABASE"
        scheme = read.scheme_of(args.to)  # the rest may hold a password
        got = None if scheme is None else f"{scheme}://..."
        raise InputError("--to", "unknown database", got=got, expected=expected)
    if args.format not in (None, "parquet"):
        remedy = "Leave --format out."
        raise InputError("--to", "loads Parquet", got=f"--format {args.format}", remedy=remedy)
    if args.dry_run or args.check:
        option = "--dry-run" if args.dry_run else "--check"
        raise InputError("--to", "loads vectors", got=option, remedy="Leave one of them out.")


def _refuse_streams(args: argparse.Namespace, inputs: Sequence[read.Source]) -> None:
    """Refuse inputs that cannot be read again: a job reads its files for the plan, and again for each unit."""
    for source in inputs:
        if source.path == read.STDIN and not args.files:
            expected = "input files to begin one with, or the folder of a job"
            raise InputError(args.output, "holds no job", expected=expected)
        local = read.scheme_of(source.path) is None
        usable = source.problem is not None or not local or os.path.isfile(source.path)
        if source.path == read.STDIN or not usable:
            raise InputError(
                source.name,
                "cannot be read twice",
                expected="files",
                remedy="Save the input as a file, or name a file as output.",
            )


def _resume_line(job: Job, done: int) -> str:
    return f"{job.folder}: {done:,} of {count(len(job.plan.units), 'unit')} are done already"


def _check(job: Job) -> int:
    """Print each fault of a job; return 1 if there is any."""
    results = job.results()
    faults = list(job.check(results))
    rows = sum(result.rows for result in results.values())
    console.print_lines(faults or [f"{job.folder}: complete, {count(rows, 'text')}"])
    if faults:
        what = "delete the files that have changed, and run the command that began the job again"
        console.say(f"{job.folder}: to repair it, {what}: units without files are done again")
    return 1 if faults else 0
