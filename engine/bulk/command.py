"""`lastword embed FILES -o DIRECTORY/`: plan a corpus job, run it, continue it or check it."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lastword.bulk.job import Job, Outputs, UnitResult, planning, refuse_other_files
from lastword.bulk.parquet import OWN_COLUMNS, ParquetFile, column_types, fitting_ids
from lastword.bulk.plan import NAME, Plan, Unit
from lastword.cli import console, options, read, write
from lastword.cli.commands.embed import Work, check_vector_options
from lastword.cli.failures import Failures
from lastword.errors import InputError, count
from lastword.report import Report

if TYPE_CHECKING:
    from lastword.embedder import Embedder

_SAMPLE = 1000  # records that the types of Parquet columns are taken from


def run(args: argparse.Namespace) -> int:
    """Begin or continue a job, or check it; return the exit status."""
    _refuse_options(args)
    folder = Path(args.output)
    if args.check:
        if not (folder / NAME).exists():
            raise InputError(str(folder), "holds no job", expected=f"a folder with {NAME}")
        return _check(Job(folder, Plan.load(folder)))
    refuse_other_files(folder)
    args.on_error, args.with_places = args.on_error or "skip", True
    output_format = args.format or "parquet"
    check_vector_options(args, output_format, OWN_COLUMNS if output_format == "parquet" else ())
    given = bool(args.files) or not (folder / NAME).exists()
    inputs = options.find_inputs(args) if given else []
    problems = [source.problem for source in inputs if source.problem is not None]
    console.say_all(map(str, problems), quiet=args.quiet)
    inputs = [source for source in inputs if source.problem is None]
    _refuse_streams(inputs)
    with ExitStack() as stack:
        embedder = stack.enter_context(closing(options.open_embedder(args)))
        work = Work(args, output_format, embedder)
        if args.dry_run:
            return _print_plan(_plan(args, folder, inputs, work, embedder), embedder, work)
        with planning(folder):
            plan = _plan(args, folder, inputs, work, embedder)
            if not (folder / NAME).exists():
                plan.save(folder)
        console.say_all(embedder.notices, quiet=args.quiet)
        job = Job(folder, plan)
        return _run(args, job, _UnitWriter(args, job, work, embedder))


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
        if args.max_batch_tokens is None:  # on a GPU the default depends on its free memory
            settings["max_batch_tokens"] = plan.settings["max_batch_tokens"]
        plan.check_settings(settings, folder, mixed=args.allow_mixed)
        plan.check_files(inputs or None)
        return plan
    sample = islice(work.records(inputs, None), _SAMPLE)
    settings["columns"] = column_types(sample, args.vector_field, args.id_field)
    return Plan.make(inputs, settings, args.unit_records, work.fields)


def _run(args: argparse.Namespace, job: Job, writer: "_UnitWriter") -> int:
    from lastword.progress import progress_bar

    done = job.results()
    mine = job.plan.units[args.rank :: args.world]
    todo = [unit for unit in mine if unit.number not in done]
    console.say_all([_resume_line(job, len(done))] if done else [], quiet=args.quiet)
    total, began = Report(), perf_counter()
    show = console.shows_progress(quiet=args.quiet)
    size = sum(unit.num_bytes for unit in todo)
    with (
        closing(writer.kept),
        progress_bar(size, show=show, unit="B", what="Embedding") as advance,
    ):
        writer.advance = advance

        def finished(_: Unit, result: UnitResult) -> None:
            total.texts += result.rows
            total.tokens_requested += result.tokens
            total.cut += result.cut

        claimed = job.run(todo, writer.write_unit, finished)
    total.seconds = perf_counter() - began
    console.say_all(_summary(job, total, claimed), quiet=args.quiet)
    return 0


class _UnitWriter:
    """Embeds the records of a unit and writes its files."""

    def __init__(
        self, args: argparse.Namespace, job: Job, work: Work, embedder: "Embedder"
    ) -> None:
        self._args, self._job, self._work, self._embedder = args, job, work, embedder
        self.advance: Callable[[int], None] = lambda _: None
        self.kept = read.KeptOpen()

    def write_unit(self, unit: Unit, outputs: Outputs) -> UnitResult:
        """Write the files of a unit."""
        name = str(self._job.path(unit))
        failures = Failures(
            skip=self._args.on_error == "skip",
            out=outputs.errors,
            name=f"{name}: its errors",
            never=(read.UrlError,),  # the plan has read the file, so another run may do so too
        )
        self._work.begin(failures)
        # Memory pressure in one unit must not change the batches, and so the last bits, of the next.
        self._embedder.max_batch_tokens = self._job.plan.settings["max_batch_tokens"]
        places = None if outputs.rows is None else self._work.places(outputs.rows, name)
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

        records = self._work.records(inputs, meter, self.kept)
        if on_rows is not None and self._args.id_field is not None:
            kind = self._job.plan.settings["columns"]["id"]
            records = fitting_ids(records, kind, failures.leave_out_line)
        with closing(writer) if isinstance(writer, ParquetFile) else nullcontext():
            report = self._work.embed(
                records, writer, places, meter, on_rows=on_rows, advance=advance
            )
        advance(unit.num_bytes)
        if places is not None:
            places.finish()
        return UnitResult(
            rows=report.texts,
            errors=failures.count,
            tokens=report.tokens_requested,
            cut=report.cut,
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
    if not 0 <= args.rank < args.world:
        expected = f"0 to {args.world - 1}, as --world {args.world} says"
        raise InputError("--rank", "out of range", got=str(args.rank), expected=expected)


def _refuse_streams(inputs: Sequence[read.Source]) -> None:
    """Refuse inputs that cannot be read again: a job reads its files once to plan, and once more for each unit."""
    for source in inputs:
        local = read.scheme_of(source.path) is None
        if source.path == read.STDIN or (local and not os.path.isfile(source.path)):
            raise InputError(
                source.name,
                "cannot be read twice",
                expected="files",
                remedy="Save the input as a file, or name a file as output.",
            )


def _resume_line(job: Job, done: int) -> str:
    return f"{job.folder}: {done:,} of {count(len(job.plan.units), 'unit')} are done already"


def _summary(job: Job, total: Report, claimed: Sequence[Unit]) -> Iterator[str]:
    results = job.results()
    rows = sum(result.rows for result in results.values())
    errors = sum(result.errors for result in results.values())
    cut = sum(result.cut for result in results.values())
    skipped = sum(result.skipped for result in results.values())
    if total.texts:
        yield (
            f"this run: {count(total.texts, 'text')}, {total.texts / total.seconds:,.0f} texts/s, "
            f"{total.tokens_per_second:,.0f} tokens/s"
        )
    if claimed:
        yield f"{count(len(claimed), 'unit')} left to other processes, which are working on them"
    missing = len(job.plan.units) - len(results)
    state = "complete" if not missing else f"{count(missing, 'unit')} still to do"
    left_out = (
        f", {count(errors, 'record')} left out (see {job.folder / '_errors'})" if errors else ""
    )
    left_out += f", {options.skipped_line(skipped)}" if skipped else ""
    yield f"{job.folder}: {state}; {count(rows, 'text')}, {cut:,} cut{left_out}"


def _check(job: Job) -> int:
    """Print each fault of a job; return 1 if there is any."""
    results = job.results()
    faults = list(job.check(results))
    rows = sum(result.rows for result in results.values())
    console.print_lines(faults or [f"{job.folder}: complete, {count(rows, 'text')}"])
    return 1 if faults else 0


def _print_plan(plan: Plan, embedder: "Embedder", work: Work) -> int:
    """Print what a job would do: units, records and bytes, and the tokens of a sample."""
    records = sum(unit.records for unit in plan.units)
    size = sum(unit.num_bytes for unit in plan.units)
    sources = plan.sources(plan.units[0]) if plan.units else []
    texts = [record.text for record in islice(work.records(sources, None), _SAMPLE)]
    lengths = sorted(map(len, embedder.token_ids(texts, prompt=work.prompt)))
    lines = [f"{count(records, 'record')} in {count(len(plan.units), 'unit')}, {size:,} bytes"]
    if lengths:
        marks = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "most": 1.0}
        found = (f"{name} {lengths[int(at * (len(lengths) - 1))]:,}" for name, at in marks.items())
        mean = sum(lengths) / len(lengths)
        lines.append(f"tokens per text, of the first {len(lengths):,}: {', '.join(found)}")
        lines.append(f"about {mean * records:,.0f} tokens")
    console.print_lines(lines)
    return 0
