"""`lastword embed`: compute one vector per input text, in order, in constant memory."""

import argparse
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, BinaryIO

import lastword
from lastword.cli import console, options, read, write
from lastword.cli.documents.paths import names_many
from lastword.cli.documents.written import is_by_lastword, is_open, keep_foreign_files
from lastword.cli.failures import (
    Blanks,
    Failures,
    begin_error_list,
    collect_failures,
    require_texts,
    unknown_word_notices,
)
from lastword.cli.output import check_extension, is_packed, is_stdout, is_stream, open_output
from lastword.cli.read import PLACE, Record, Source
from lastword.cli.stream import embed_records
from lastword.errors import InputError, count
from lastword.report import Report

if TYPE_CHECKING:
    from lastword.embedder import Embedder

TABLE = "lastword"  # the default of --table
UNIT_RECORDS = 50_000  # the default of --unit-records
VECTOR_FIELD = "embedding"  # the default of --vector-field
ABOUT = "turn texts into vectors"
EXAMPLES = """examples:
  lastword embed notes.txt --model Qwen/Qwen3-Embedding-0.6B > vectors.jsonl
  lastword embed docs.jsonl --text-field body --model ./model --dim 256 -o docs.safetensors
  lastword embed big.csv.gz --model ./model -o big.npy
  lastword embed docs --files --chunk 200 --ignore 'drafts/' -o docs.npy
  lastword embed big.jsonl --on-error skip --errors skipped.jsonl -o big.npy
  lastword embed corpus/ --model ./model -o vectors/          a job: run the command again to resume it
  lastword embed --check vectors/
  lastword embed corpus/ --model ./model -o vectors/ --ray 10.0.0.1:6379

JSON lines output keeps the other fields of .jsonl, .csv, .tsv and .parquet records.

With several files, a folder, a pattern, --files or --chunk, the output also says where each text comes from: in the
fields `path` and `line` (no `line` if the text is a whole file) and, for a chunk, in `chunk` (its number, from 0),
`start` and `end` (characters). In JSON lines output these fields are added to each line, and the text field holds the
chunk. For .npy and .safetensors output, they and the texts of chunks go to OUT.rows.jsonl, one line per vector. A byte
of a file name that is not UTF-8 is written as \\xNN.

A chunk is text[start:end] in Python, where text is the line or field or, with --files,
open(path, encoding="utf-8-sig", newline="").read(): \\r\\n counts as two characters, and a byte order mark is not
counted. For an HTML file, text is what remains without the tags, so start and end are not positions in the file.

A line ends with \\n or \\r\\n; any other character, such as a lone \\r, is part of the line. A record has at most
33,554,432 characters. In a JSON object, no key may occur twice. In .jsonl files, and in .csv and .tsv files with
several columns, blank lines are skipped; in plain text and in files with a single column, they are empty texts.

--precision int8 scales each vector so that its largest absolute value becomes 127 (compare by cosine). With --ranges,
each dimension is scaled instead, so that its range becomes -127 to 127; uint8 is the same number plus 128. ubinary
keeps one bit per dimension, 1 for a value above 0, eight bits to a byte; binary is the same byte minus 128 (compare
both by Hamming distance).

With -o DIRECTORY/, the command is a job. Its plan (_plan.json) divides the input into units, and the vectors of a unit
appear in the folder, as part-000000.parquet and so on, once the unit is complete. If an interrupted command is run
again with the same options, it does only what is missing; several processes or machines may work on one folder. Records
that cannot be read or embedded are listed in _errors/, and the job goes on (unless --on-error stop). A Parquet file has
the column `id` (the record's own id or, if it has none, its place in the input); a column for each remaining field
found in a sample of the records; `other`, a JSON object of the fields that have no column or whose value does not fit
their column's type; and `path`, `line`, `chunk`, `start`, `end`, `embedding`, `tokens` and `truncated`.

With -o OUT, metadata is stored too: the model, its settings and two fingerprints. A .safetensors or Parquet file holds
its own metadata; for .npy and .jsonl, the metadata goes to OUT.json. Stdout and other streams (/dev/stderr, a named
pipe) take JSON lines only; there, --header prints the metadata first. Vectors can be compared if they have the same
`space` fingerprint, the same precision and, if made with --ranges, the same ranges. The same `run` fingerprint means
the same model and settings.

The last line on stderr gives the numbers of tokens requested and computed, of prompt tokens whose keys and values the
model had kept ("from the prompt cache"), and of tokens saved because texts shared a prefix. tokens/s counts requested
tokens."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    options.add_input_options(parser, jobs=True)
    options.add_prompt_options(parser, "text")
    parser.add_argument(
        "-o",
        "--output",
        type=options.path_argument,
        metavar="OUT",
        help="output: a file (which appears or is replaced only when it is complete), a device file such as "
        "/dev/stderr, or a pipe; or a folder, with a slash at the end (DIRECTORY/), for a job that can be interrupted "
        "and resumed; by default stdout",
    )
    parser.add_argument(
        "--format",
        choices=("parquet", *write.FORMATS),
        help="output format; by default the extension of OUT decides: .jsonl, .safetensors or .npy; without an "
        "extension, jsonl; for a folder, parquet, which needs pip install 'lastword[bulk]'",
    )
    parser.add_argument(
        "--header",
        action="store_true",
        help='when writing to stdout or a pipe, print the metadata first, as a line {"lastword": {...}}',
    )
    parser.add_argument(
        "--vector-field",
        type=options.name_argument,
        default=VECTOR_FIELD,
        metavar="NAME",
        help="name of the JSON field or safetensors tensor that holds the vectors; by default `embedding`",
    )
    parser.add_argument(
        "--precision",
        choices=tuple(write.ELEMENT_TYPES),
        default="float32",
        help="number format of the vectors, explained below; by default float32",
    )
    parser.add_argument(
        "--skip-blank",
        action="store_true",
        help="leave out texts that are empty or only white space; by default they are embedded too, so that row N is "
        "the vector of text N (unless --on-error skip leaves texts out). With --chunk they are always left out, "
        "because they have no chunks",
    )
    parser.add_argument(
        "--normalize",
        action="store_true",
        help="scale every vector to length 1; by default this is done only if the model's files say so, or if --dim "
        "shortens the vectors",
    )
    _add_field_options(parser)
    _add_ranges(parser)
    _add_job_options(parser)
    options.add_model_options(parser)


def _add_field_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--id-field",
        type=options.name_argument,
        metavar="NAME",
        help="name of the field that holds the id of a record, a string or a number; a record without it is an error. "
        "Ids go to the column `id` of Parquet files and to OUT.rows.jsonl; by default, that column has the field `id` "
        "where there is one, else the file and line",
    )
    parser.add_argument(
        "--drop-text",
        action="store_true",
        help="do not write the text, or the fields of --template; by default the output keeps all fields",
    )


def _add_ranges(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranges",
        type=options.path_argument,
        metavar="FILE",
        help="file made by --save-ranges, with a range for each dimension; int8 or uint8 vectors are scaled by these "
        "ranges; required for uint8; by default int8 scales each vector by its largest absolute value",
    )
    parser.add_argument(
        "--save-ranges",
        type=options.path_argument,
        metavar="FILE",
        help="save the smallest and largest value of each dimension to this .safetensors file, for later use with "
        "--ranges; needs --precision float32",
    )


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("jobs (-o DIRECTORY/)")
    group.add_argument(
        "--unit-records",
        type=options.positive,
        metavar="N",
        help="number of input records in each unit, a part of the job that is done as a whole; fixed when the job is "
        f"planned; by default {UNIT_RECORDS:,}",
    )
    group.add_argument(
        "--rank",
        type=options.natural,
        default=0,
        metavar="R",
        help="this machine's number, from 0, if several share the job (see --world): it processes the units R, R+W, "
        "R+2W and so on; by default 0",
    )
    group.add_argument(
        "--world",
        type=options.positive,
        default=1,
        metavar="W",
        help="number of machines that share the job; by default 1",
    )
    _add_ray_options(group)
    group.add_argument(
        "--allow-mixed",
        action="store_true",
        help="continue a job although the number of threads, the device, --max-batch-tokens or the version of "
        "lastword has changed; vectors then differ by rounding from those of a run without such a change",
    )
    _add_database(group)
    _add_reports(group)


def _add_database(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--to",
        metavar="URL",
        help="also load the vectors of the job into a table of PostgreSQL with pgvector: "
        "postgresql://USER@HOST/DATABASE; a row replaces an earlier row with the same id and chunk, and every unit is "
        "loaded once. Needs pip install 'lastword[bulk,postgres]'",
    )
    group.add_argument(
        "--table",
        default=TABLE,
        metavar="NAME",
        help=f"with --to, name of the table; by default {TABLE}",
    )


def _add_reports(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object on stdout for each unit that is done: its counts, its speed and the seconds left",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print what the job would do, how much of it is done, and how long the rest would take at the speed "
        "measured on a sample, and exit",
    )
    group.add_argument(
        "--hourly-price",
        type=options.price,
        metavar="X",
        help="price of a machine per hour; --dry-run then prints the price of the job and per million texts",
    )
    group.add_argument(
        "--check",
        action="store_true",
        help="check that every unit of the job is done and that no output file has changed since; exit status 1 if not",
    )


def _add_ray_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="process the units on a Ray cluster, with one model per GPU or, without GPUs, per N cores (see "
        "--cores-per-model); ADDRESS is HOST:PORT of the cluster's head, or `local` to start a new cluster on this "
        "machine alone; by default the address in RAY_ADDRESS, else the cluster that runs on this machine, else a new "
        "one as with `local`. The files, the folder and the model must have the same paths on every machine. Needs "
        "pip install 'lastword[ray]'",
    )
    group.add_argument(
        "--cores-per-model",
        type=options.positive,
        metavar="N",
        help="with --ray, number of CPU cores (and threads) for each model; by default the number in the job's plan. "
        "If there is no plan yet: all cores of the smallest machine or, if the machines have GPUs, that machine's "
        "cores per GPU",
    )


def _is_job(args: argparse.Namespace) -> bool:
    """Return whether the output is a folder: its name ends with a slash, or it is a folder that exists.

    `--check DIRECTORY` is read as `--check -o DIRECTORY`.
    """
    if args.check and args.output is None and len(args.files) == 1 and os.path.isdir(args.files[0]):
        args.output, args.files = args.files[0], []
    output: str | None = args.output
    return output is not None and (output.endswith(os.sep) or os.path.isdir(output))


def _refuse_job_options(args: argparse.Namespace) -> None:
    """Refuse the options of jobs if the output is not a folder."""
    given = (
        (args.format == "parquet", "--format parquet"),
        (args.rank != 0, "--rank"),
        (args.world != 1, "--world"),
        (args.dry_run, "--dry-run"),
        (args.check, "--check"),
        (args.json, "--json"),
        (args.to is not None, "--to"),
        (args.table != TABLE, "--table"),
        (args.hourly_price is not None, "--hourly-price"),
        (args.ray is not None, "--ray"),
        (args.cores_per_model is not None, "--cores-per-model"),
        (args.allow_mixed, "--allow-mixed"),
        (args.unit_records is not None, "--unit-records"),
    )
    for wrong, option in given:
        if wrong:
            remedy = "Name a folder with -o DIRECTORY/."
            if args.check:
                remedy = "Name the job's folder: lastword embed --check DIRECTORY."
            got = "no -o" if args.output is None else f"-o {args.output}"
            raise InputError(option, "is for jobs", got=got, remedy=remedy)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    for option in ("output", "save_ranges"):
        options.refuse_url(getattr(args, option))
    if _is_job(args):
        from lastword.bulk import command

        return command.run(args)
    _refuse_job_options(args)
    begin_error_list(args)
    output_format = _choose_format(args)
    inputs = options.find_inputs(args)
    sidecar = f"{args.output}.json" if args.to_file and output_format != "safetensors" else None
    rows = f"{args.output}.rows.jsonl" if args.with_places and output_format != "jsonl" else None
    given = (source.path for source in inputs if source.path != read.STDIN)
    outputs = (args.output if args.to_file else None, sidecar, rows, args.save_ranges, args.errors)
    options.refuse_overwriting((*given, args.ranges), outputs)
    keep_foreign_files((sidecar, rows, args.save_ranges))
    if args.output is None:
        _refuse_endless(inputs)
    with collect_failures(args) as failures, ExitStack() as files:
        # The files appear in the reverse of this order: the vectors first, then the files that describe them.
        ranges_out = _enter(files, args.save_ranges)
        sidecar_out = _enter(files, sidecar)
        rows_out = _enter(files, rows)
        out = _enter(files, args.output) or console.stdout_bytes()
        # `closing` frees the model on Ctrl-C too.
        embedder = files.enter_context(closing(options.open_embedder(args)))
        work = Work(args, output_format, embedder, failures)
        if args.with_places and output_format == "jsonl":
            work.metadata["places"] = "true"  # a record may have such fields of its own
        places = None if rows is None or rows_out is None else work.places(rows_out, rows)
        meter = read.Meter(inputs)
        writer = work.writer(out, args.output or console.STDOUT)
        report = work.embed(work.records(inputs, meter), writer, places, meter)
        require_texts(report.texts, args.files, failures, work.blanks, work.fields)
        if sidecar_out is not None and sidecar is not None:
            console.put(sidecar_out, write.sidecar(work.metadata, report.texts), sidecar)
            console.attempt(sidecar_out.flush, sidecar)
        if places is not None:
            places.finish()
        if ranges_out is not None:
            work.seen.save(ranges_out, args.save_ranges, work.metadata)
            console.attempt(ranges_out.flush, args.save_ranges)
    if args.to_file and rows is None:
        _remove_old_rows(args.output)
    console.say_all(failures.notices(), quiet=args.quiet and args.errors is not None)
    left_out = (*work.blanks.notices(), *options.skipped_notices(work.fields))
    unknown = unknown_word_notices(report, count(report.texts, "text"), embedder)
    notices = (*embedder.notices, *left_out, *unknown, summary(report))
    console.say_all(notices, quiet=args.quiet)
    return 0


class Work:
    """The state of one run once its model is open: prompt, ranges, metadata."""

    def __init__(
        self,
        args: argparse.Namespace,
        output_format: str,
        embedder: "Embedder",
        failures: Failures | None = None,
    ) -> None:
        from lastword.cli.ranges import Ranges, ranges_fingerprint, read_ranges
        from lastword.model_info import FINGERPRINT_VERSION

        self._args, self._format, self._embedder = args, output_format, embedder
        self.begin(failures or Failures(skip=True))
        self.seen = Ranges()
        self.prompt = embedder.resolve_prompt(args.prompt_name, args.prompt, None)
        self._splitter = options.open_splitter(args, embedder, self.prompt)
        chunking = None if self._splitter is None else self._splitter.settings()
        space = embedder.info.space_fingerprint(normalize_embeddings=args.normalize)
        self._ranges = read_ranges(args.ranges, embedder.dim, space) if args.ranges else None
        self.metadata = {
            "space": space,
            "run": embedder.info.run_fingerprint(
                self.prompt,
                args.precision,
                ranges=self._ranges,
                normalize_embeddings=args.normalize,
                chunking=chunking,
            ),
            "fingerprints": str(FINGERPRINT_VERSION),
            "model": embedder.name,
            "dim": str(embedder.dim),
            "precision": args.precision,
            **({} if self._ranges is None else {"ranges": ranges_fingerprint(self._ranges)}),
            "prompt": self.prompt,
            "lastword": lastword.__version__,
            **(chunking or {}),
            **self._about_texts(),
        }

    def _about_texts(self) -> dict[str, str]:
        """Return the settings about texts that a search of the vectors needs; defaults are left out."""
        args = self._args
        found = {
            "text_field": args.text_field if args.text_field != "text" else None,
            "template": args.template,
            "drop_text": "true" if args.drop_text else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def begin(self, failures: Failures) -> None:
        """From now on, collect unusable texts in `failures`, and count blank and skipped texts from zero."""
        self._failures, self.fields = failures, options.fields_of(self._args)
        # A blank text has no chunks.
        self.blanks = Blanks(skip=self._args.skip_blank or self._args.chunk is not None)

    def records(
        self,
        inputs: Sequence[Source],
        meter: read.Meter | None,
        kept: read.KeptOpen | None = None,
    ) -> Generator[Record]:
        """Yield a record for each text or chunk to embed, with the JSON fields to write beside its vector."""
        on_bad, delimiter = self._failures.leave_out_line, self._args.delimiter
        found = read.read(inputs, self.fields, delimiter, on_bad=on_bad, meter=meter, kept=kept)
        with closing(found):  # closes the files, even if a record is refused below
            yield from self._prepare(found, on_bad)

    def _prepare(self, found: Iterator[Record], on_bad: read.OnBad) -> Iterator[Record]:
        args = self._args
        records = self.blanks.filter(found)
        if self._splitter is not None:
            records = self._splitter.split_records(records, args.text_field, on_bad)
        if self._format == "jsonl":
            records = _check_vector_field(records, args.vector_field, on_bad)
            if args.with_places:
                from lastword.cli.documents.chunks import add_places

                records = add_places(records, on_bad)
        if args.drop_text:
            from lastword.cli.documents.chunks import without_text

            records = without_text(records, self.fields.text_names)
        return records

    def places(self, out: BinaryIO, name: str) -> write.Places:
        """Return the writer of OUT.rows.jsonl; `name` is the name of `out` in messages."""
        return write.Places(out, name, with_text=not self._args.drop_text)

    def embed(
        self,
        records: Iterable[Record],
        writer: write.Writer,
        places: write.Places | None,
        meter: read.Meter,
        *,
        on_rows: Callable[[list[tuple[int, bool]]], None] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> Report:
        """Write the vector of every record to `writer` and its place to `places`; return the run's counts."""
        report = Report()
        for group, matrix in embed_records(
            self._embedder,
            records,
            self.prompt,
            failures=self._failures,
            meter=meter,
            precision=self._args.precision,
            ranges=self._ranges,
            too_long=self._args.on_long,
            normalize_embeddings=self._args.normalize,
            report=report,
            show=console.shows_progress(quiet=self._args.quiet),
            advance=advance,
            on_rows=on_rows,
        ):
            writer.write(group, matrix)
            if places is not None:
                places.write(group)
            if self._args.save_ranges:
                self.seen.add(matrix)
        writer.finish()
        return report

    def writer(self, out: BinaryIO, name: str) -> write.Writer:
        """Return the writer of the output format; `name` is the name of `out` in messages."""
        layout, dim = write.ELEMENT_TYPES[self._args.precision], self._embedder.dim
        field = self._args.vector_field
        if self._format == "jsonl":
            header = self.metadata if self._args.header else None
            return write.JsonLines(out, name, field, write.numbers(layout, dim), header)
        if self._format == "npy":
            return write.Matrix(out, name, write.npy_header(layout, dim))
        return write.Matrix(out, name, write.safetensors_header(field, layout, dim, self.metadata))


def summary(report: Report) -> str:
    """Return one line with the tokens requested, computed, cached and saved, the texts cut, and the speed."""
    saved = 100 * report.tokens_saved / report.tokens_requested if report.tokens_requested else 0.0
    cached = f"{report.tokens_cached:,} from the prompt cache, " if report.tokens_cached else ""
    return (
        f"{count(report.texts, 'text')}, {count(report.tokens_requested, 'token')} requested, "
        f"{report.tokens_computed:,} computed, {cached}{report.tokens_saved:,} ({saved:.1f} %) saved by "
        f"sharing, {count(report.cut, 'text')} cut, {report.tokens_per_second:,.0f} tokens/s"
    )


def _choose_format(args: argparse.Namespace) -> str:
    """Return the output format, and refuse options that cannot be combined.

    Also sets `args.with_places` (whether to write where each text comes from) and `args.to_file` (whether the output is
    a file, not a stream), and sets `args.output` to None if it names stdout.
    """
    if args.output is not None and is_stdout(args.output):
        args.output = None
    many = len(args.files) > 1 or any(map(names_many, args.files))
    args.with_places = args.whole or args.chunk is not None or many

    args.to_file = args.output is not None and not is_stream(args.output)
    output_format: str = args.format or _format_of(args.output or "")
    if args.format is not None and read.split_ending(args.output or "")[1] != "json":
        check_extension(args.output, output_format, f"--format {output_format}")
    check_extension(args.save_ranges, "safetensors", "--save-ranges, which writes safetensors")
    if output_format != "jsonl" and not args.to_file:
        raise InputError(
            args.output or f"--format {output_format}",
            f"{output_format} cannot be written to {'a stream' if args.output else 'stdout'}",
            expected="a file, because its header is written last",
            remedy="Name a file with -o, or pass --format jsonl.",
        )
    if args.header and args.to_file:
        place = args.output if output_format == "safetensors" else f"{args.output}.json"
        remedy = f"Leave it out: the metadata goes to {place}."
        raise InputError(
            "--header", "is for stdout and pipes", got=f"-o {args.output}", remedy=remedy
        )
    check_vector_options(args, output_format)
    return output_format


def check_vector_options(
    args: argparse.Namespace, output_format: str, taken: Iterable[str] = ()
) -> None:
    """Refuse a precision that does not fit --ranges and --save-ranges, and a --vector-field that cannot be written.

    Args:
        args: the command's arguments, with `with_places`.
        output_format: the output format.
        taken: names that the output uses for other things.
    """
    _check_ranges(args)
    if output_format == "npy" and args.vector_field != VECTOR_FIELD:
        remedy = "Leave it out, or choose another --format."
        raise InputError(
            "--vector-field", "npy has no names", got=repr(args.vector_field), remedy=remedy
        )
    places = PLACE if args.with_places else ()
    if args.vector_field in (args.text_field, "__metadata__", *places, *taken):
        what = f"the name {args.vector_field!r} is already used"
        raise InputError("--vector-field", what, remedy="Choose another name.")


def _check_ranges(args: argparse.Namespace) -> None:
    """Refuse a precision that does not fit --ranges and --save-ranges."""
    got = f"--precision {args.precision}"
    if args.precision == "uint8" and args.ranges is None:
        raise InputError(got, "needs ranges", remedy="Name them with --ranges FILE.")
    if args.ranges is not None and args.precision not in ("int8", "uint8"):
        raise InputError("--ranges", "is for int8 and uint8", got=got)
    if args.save_ranges is not None and args.precision != "float32":
        raise InputError("--save-ranges", "needs float32 vectors", got=got)


def _format_of(output: str) -> str:
    """Return the format that the output's extension names; without an extension, JSON lines."""
    _, ending = read.split_ending(output)
    if ending in ("", "ndjson"):
        return "jsonl"
    if ending not in write.FORMATS:
        lines = "JSON lines are named .jsonl. " if ending == "json" else ""
        if ending == "parquet":
            lines = "Parquet files are written to a folder: -o DIRECTORY/. "
        chosen = "" if is_packed(ending) else ", or choose the format with --format"
        raise InputError(
            output,
            f"unsupported output format .{ending}",
            expected=".jsonl, .safetensors or .npy",
            remedy=f"{lines}Use one of these extensions{chosen}.",
        )
    return ending


def _remove_old_rows(output: str) -> None:
    """Remove OUT.rows.jsonl of an earlier run, because it does not describe the new vectors."""
    path = f"{output}.rows.jsonl"
    if os.path.isfile(path) and is_by_lastword(path):
        console.attempt(lambda: os.remove(path), path)


def _refuse_endless(inputs: Iterable[Source]) -> None:
    """Refuse an input file to which stdout is redirected: the file would grow as fast as it is read."""
    for source in inputs:
        if is_open(source.path, 1):
            remedy = "Name another file with -o."
            raise InputError(source.name, "is an input and receives the output", remedy=remedy)


def _enter(files: ExitStack, path: str | None) -> BinaryIO | None:
    return None if path is None else files.enter_context(open_output(path))


def _check_vector_field(
    records: Iterable[Record], field: str, on_bad: read.OnBad
) -> Iterator[Record]:
    """Yield the records; call `on_bad` instead for a record that already has a field named `field`."""
    for record in records:
        if field not in record.names:
            yield record
            continue
        error = InputError(
            record.where,
            f"already has a field {field!r}",
            remedy="Choose another name with --vector-field, or remove the field.",
        )
        on_bad(error, record.path, record.line)
