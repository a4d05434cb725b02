"""`lastword embed`: every text of the input gets its vector, in order, in constant memory."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

import lastword
from lastword.cli import console, options, read, write
from lastword.cli.read import Record
from lastword.cli.stream import embed_records
from lastword.errors import InputError
from lastword.report import Report

if TYPE_CHECKING:
    from lastword.embedder import Embedder

SIGNATURE = ("space", "run")
ABOUT = "turn texts into vectors"
EXAMPLES = """examples:
  lastword embed notes.txt --model Qwen/Qwen3-Embedding-0.6B > vectors.jsonl
  lastword embed docs.jsonl --text-field body --model ./model --dim 256 -o docs.safetensors
  zcat big.csv.gz | lastword embed - --input-format csv --model ./model -o big.npy

In JSON lines other fields of .jsonl and .csv records are carried through. The report on stderr
counts the tokens asked for, those computed, and what sharing common beginnings saved; tokens/s is
of those asked for."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    options.add_input_options(parser)
    options.add_prompt_options(parser, "text")
    parser.add_argument(
        "-o", "--output", type=options.path, metavar="OUT", help="write here, whole or not at all"
    )
    parser.add_argument(
        "--format",
        choices=write.FORMATS,
        help="by default the ending of OUT, jsonl without one; npy puts its metadata in OUT.json",
    )
    parser.add_argument(
        "--vector-field", default="embedding", metavar="NAME", help="field, or tensor, of vectors"
    )
    parser.add_argument(
        "--precision",
        choices=tuple(write.LAYOUTS),
        default="float32",
        help="of the vectors written",
    )
    parser.add_argument(
        "--normalize", action="store_true", help="to length 1, also where the model does not"
    )
    parser.add_argument(
        "--ranges", type=options.path, metavar="FILE", help="saved ranges for int8 or uint8 codes"
    )
    parser.add_argument(
        "--save-ranges",
        type=options.path,
        metavar="FILE",
        help="save the ranges of these vectors (float32 only)",
    )
    options.add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    style = _style(args)
    inputs = read.sources(args.files, args.input_format)
    sidecar = f"{args.output}.json" if style == "npy" else None
    given = (source.path for source in inputs if source.path != read.STDIN)
    options.refuse_overwriting((*given, args.ranges), (args.output, sidecar, args.save_ranges))
    taken = (args.vector_field, *SIGNATURE) if style == "jsonl" else ()
    with ExitStack() as files:
        # the last one entered is in place first: the vectors, then what describes them
        ranges_out = _enter(files, args.save_ranges)
        beside = _enter(files, sidecar)
        out = _enter(files, args.output) or console.stdout_bytes()
        embedder = options.open_model(args)
        work = _Work(args, style, embedder)
        records = _unless_taken(read.read(inputs, args.text_field), taken)
        report = work.embed(records, out)
        if beside is not None and sidecar is not None:
            console.put(beside, write.sidecar(work.metadata, report.texts), sidecar)
            console.attempt(beside.flush, sidecar)
        if ranges_out is not None:
            work.seen.save(ranges_out, args.save_ranges, work.metadata)
            console.attempt(ranges_out.flush, args.save_ranges)
    console.say_all((*embedder.notices, summary(report)), quiet=args.quiet)
    return 0


class _Work:
    """What one run knows once its model is open."""

    def __init__(self, args: argparse.Namespace, style: str, embedder: "Embedder") -> None:
        from lastword.cli.ranges import Ranges, read_ranges

        self._args, self._style, self._embedder = args, style, embedder
        self.seen = Ranges()
        self._prompt = embedder.resolve_prompt(args.prompt_name, args.prompt, None)
        space = embedder.space_fingerprint(normalize_embeddings=args.normalize)
        self._ranges = read_ranges(args.ranges, embedder.dim, space) if args.ranges else None
        self.metadata = {
            "space": space,
            "run": embedder.run_fingerprint(
                self._prompt,
                args.precision,
                ranges=self._ranges,
                normalize_embeddings=args.normalize,
            ),
            "model": embedder.name,
            "dim": str(embedder.dim),
            "precision": args.precision,
            "prompt": self._prompt,
            "lastword": lastword.__version__,
        }

    def embed(self, records: Iterable[Record], out: BinaryIO) -> Report:
        """Write every record's vector to `out`."""
        writer, report = self._writer(out), Report()
        for record, vector in embed_records(
            self._embedder,
            records,
            prompt=self._prompt,
            precision=self._args.precision,
            ranges=self._ranges,
            too_long=self._args.on_long,
            normalize_embeddings=self._args.normalize,
            report=report,
            show_progress_bar=console.shows_progress(quiet=self._args.quiet),
        ):
            writer.write(record, vector)
            if self._args.save_ranges:
                self.seen.add(vector)
        writer.finish()
        return report

    def _writer(self, out: BinaryIO) -> write.Writer:
        layout, dim = write.LAYOUTS[self._args.precision], self._embedder.dim
        name, field = self._args.output or "stdout", self._args.vector_field
        if self._style == "jsonl":
            signature = {key: self.metadata[key] for key in SIGNATURE}
            return write.JsonLines(out, name, field, write.numbers(layout, dim), signature)
        if self._style == "npy":
            return write.Matrix(out, name, write.npy_header(layout, dim))
        return write.Matrix(out, name, write.safetensors_header(field, layout, dim, self.metadata))


def summary(report: Report) -> str:
    """Say in one line what was asked, what was computed, and how fast."""
    saved = 100 * report.tokens_saved / report.tokens_asked if report.tokens_asked else 0.0
    return (
        f"{report.texts:,} texts, {report.tokens_asked:,} tokens asked, "
        f"{report.tokens_computed:,} computed, {report.tokens_saved:,} ({saved:.1f} %) saved by "
        f"sharing, {report.cut:,} texts cut, {report.tokens_per_second:,.0f} tokens/s"
    )


def _style(args: argparse.Namespace) -> str:
    """Choose the output format and refuse options that do not go together."""
    args.output = None if args.output == "-" else args.output
    style: str = args.format or _style_of(args.output or "")
    if style != "jsonl" and args.output is None:
        raise InputError(f"--format {style}: cannot go to stdout; name a file with -o")
    if args.precision == "uint8" and args.ranges is None:
        raise InputError("--precision uint8: needs ranges; name them with --ranges FILE")
    if args.ranges is not None and args.precision not in ("int8", "uint8"):
        raise InputError(f"--ranges: is for int8 and uint8; got --precision {args.precision}")
    if args.save_ranges is not None and args.precision != "float32":
        raise InputError(f"--save-ranges: needs float32 vectors; got --precision {args.precision}")
    if args.vector_field in (args.text_field, *SIGNATURE, "__metadata__"):
        raise InputError(
            f"--vector-field: {args.vector_field!r} has a meaning already; name another"
        )
    return style


def _style_of(output: str) -> str:
    """Go by the ending of the output's name; none is JSON lines."""
    _, ending = read.split_ending(output)
    if ending in ("", "json", "ndjson"):
        return "jsonl"
    if ending not in write.FORMATS:
        raise InputError(
            f"{output}: .{ending} files are not written; expected .jsonl, .safetensors or .npy. "
            "Name one of these, or say what it shall be with --format"
        )
    return ending


def _enter(files: ExitStack, path: str | None) -> BinaryIO | None:
    from lastword.weights.files.atomic import whole_file

    return None if path is None else files.enter_context(whole_file(path))


def _unless_taken(records: Iterable[Record], taken: Sequence[str]) -> Iterator[Record]:
    for record in records:
        for name in taken:
            if name in record.names:
                raise InputError(f"{record.where}: has a field {name!r} already. {_remedy(name)}")
        yield record


def _remedy(name: str) -> str:
    if name in SIGNATURE:
        return "Rename or remove it: every line written carries its own"
    return "Name another with --vector-field, or remove it"
