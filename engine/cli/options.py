"""Options that several commands share, and functions that open the model that the options name."""

import argparse
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lastword.cli import console
from lastword.cli.read import FORMATS, Condition, Fields, Source, Template, scheme_of
from lastword.errors import (
    ConfigError,
    DeviceError,
    InputError,
    LastwordError,
    LastwordWarning,
    count,
    lone_surrogate,
)

if TYPE_CHECKING:
    from lastword.cli.documents.chunks import Splitter
    from lastword.embedder import Embedder
    from lastword.model_info import ModelInfo
    from lastword.reranker import Reranker
    from lastword.reranker_info import RerankerInfo

_WITH_FIELDS = ("jsonl", "csv", "tsv", "parquet")
QUANTIZE = ("int8", "fp8")
EITHER_KIND = "Qwen3 embedding model or reranker"

# Python argument name -> command-line option
OPTION_OF = {
    "truncate_dim": "--dim",
    "max_length": "--max-length",
    "max_batch_tokens": "--max-batch-tokens",
    "device": "--device",
    "dtype": "--dtype",
    "quantize": "--quantize",
    "revision": "--revision",
    "local_files_only": "--local-files-only",
    "too_long": "--on-long",
    "normalize_embeddings": "--normalize",
    "precision": "--precision",
    "ranges": "--ranges",
    "prompt": "--prompt-name",  # --prompt itself is already checked by the parser
    "prompt_name": "--prompt-name",
    "instruction": "--instruction",
    "known_as": "--as",
    "accept": "--accept",
    "card": "--card",
    "scores": "--scores",
    "tasks": "--tasks",
    "benchmark": "--benchmark",
}


# A Python argument in a message: `name='value'`, or a bare name with an underscore, which cannot be an English word.
_ARGUMENT = re.compile(r"\b([a-z]+(?:_[a-z]+)*)=(['\"]?)([\w:.-]*\w)\2|\b([a-z]+(?:_[a-z]+)+)\b")


def in_option_words(problem: LastwordError | LastwordWarning) -> str:
    """Return the message of an error or warning, with command-line options in place of Python arguments.

    The parts `where`, `expected` and `remedy` of `problem` are changed in place. But the `where` of an InputError or
    WeightsError stays as it is, because it may be the name of a file.
    """
    if isinstance(problem, ConfigError | DeviceError | LastwordWarning):
        problem.where = OPTION_OF.get(problem.where, problem.where)
    if problem.expected is not None:
        problem.expected = _ARGUMENT.sub(_as_option, problem.expected)
    if problem.remedy is not None:
        problem.remedy = _ARGUMENT.sub(_as_option, problem.remedy)
    return str(problem)


def _as_option(found: "re.Match[str]") -> str:
    named, _, value, alone = found.groups()
    option = OPTION_OF.get(named or alone)
    if option is None:
        return found[0]
    return option if value in (None, "True") else f"{option} {value}"


def name_argument(given: str) -> str:
    """Return the name; refuse an empty one, such as the value of an unset shell variable."""
    if not given:
        raise argparse.ArgumentTypeError("an empty name")
    return text_argument(given)


def names_argument(given: str) -> list[str]:
    """Split a list of names at its commas; refuse an empty name."""
    return [name_argument(name) for name in given.split(",")]


def text_argument(given: str) -> str:
    """Return the argument; refuse one that is not UTF-8, in which Python has turned bytes into lone surrogates."""
    if lone_surrogate(given) is not None:
        raise argparse.ArgumentTypeError("not valid UTF-8 text")
    return given


def path_argument(given: str) -> str:
    """Return the path, which may contain any bytes; refuse an empty one, as from an unset shell variable."""
    if not given:
        raise argparse.ArgumentTypeError("an empty argument")
    return given


def model_argument(given: str) -> str:
    """Return the name of a model; refuse an empty one: an unset shell variable must not select the built-in model."""
    if not given:
        raise argparse.ArgumentTypeError("an empty name is not a Hugging Face id or folder")
    # The libraries that open models take valid Unicode only, and so does JSON output.
    return text_argument(given)


def revision_argument(given: str) -> str:
    """Return the text; refuse an empty one: an unset shell variable must not select the main branch."""
    if not given:
        raise argparse.ArgumentTypeError("an empty name is not a branch, tag or commit")
    return text_argument(given)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError("not a whole number of at least 1")
    return number


def price(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("not a number above 0")
    return number


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not text.isdecimal() or not text.isascii():
        raise argparse.ArgumentTypeError("not a whole number of at least 0")
    return int(text)


def delimiter_argument(given: str) -> str:
    r"""Return the delimiter, one character; a tab may be written as `tab` or `\t`."""
    delimiter = "\t" if given in ("tab", "\\t") else text_argument(given)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError("must be one character other than a quote or line end")
    return delimiter


def refuse_url(output: str | None) -> None:
    """Refuse an output that is a URL.

    Raises:
        InputError: the output is a URL.
    """
    if output is not None and scheme_of(output) is not None:
        remedy = "Write to a local file or folder, then copy it to the URL."
        raise InputError(output, "a URL cannot be written to", expected="a path", remedy=remedy)


def refuse_overwriting(inputs: Iterable[str | None], outputs: Iterable[str | None]) -> None:
    """Refuse an output file that is also an input or another output.

    Args:
        inputs: paths of the inputs; None stands for an option that was not given.
        outputs: paths of the outputs; None as for `inputs`.

    Raises:
        InputError: a file would be overwritten.
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    used = set(read)
    for path in outputs:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in used:
            expected = (
                "a file that is not one of the inputs"
                if place in read
                else "a file for each output"
            )
            remedy = "Name another output file."
            raise InputError(path, "would be overwritten", expected=expected, remedy=remedy)
        used.add(place)


def add_model_options(
    parser: argparse.ArgumentParser, *, kinds: str = "Qwen3 embedding model", computes: bool = True
) -> None:
    """Add the options that choose a model and how it runs.

    Args:
        parser: the parser of the command.
        kinds: the kinds of models that the command takes, for the help text.
        computes: whether the command runs the model; if not, it has no --max-batch-tokens.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=model_argument,
        help=f"Hugging Face id or folder of a {kinds}; by default the small built-in model",
    )
    _add_loading_options(group)
    group.add_argument(
        "--dim",
        type=positive,
        metavar="N",
        help="keep only the first N dimensions of each vector and scale the vector to length 1; by default the "
        "number that the model's files set, or all",
    )
    _add_max_length(group, "maximum number of tokens per text, including its prompt and end token")
    if computes:
        _add_max_batch_tokens(group)


def add_reranker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a reranker and how it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=model_argument,
        required=True,
        help="Hugging Face id or folder of a Qwen3 reranker, such as Qwen/Qwen3-Reranker-0.6B",
    )
    _add_loading_options(group)
    _add_max_length(
        group,
        "maximum number of tokens of the template, instruction, query and text together; only the text is cut",
    )
    _add_max_batch_tokens(group)


def _add_loading_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--revision",
        type=revision_argument,
        help="branch, tag or commit of the model on the Hugging Face Hub; by default the main branch",
    )
    group.add_argument(
        "--local-files-only",
        action="store_true",
        help="do not use the network: the model must be in a folder or in the cache of huggingface-hub",
    )

    group.add_argument(
        "--device",
        help="cpu, cuda or cuda:1, or several GPUs: cuda:0,1 or cuda:all; by default a GPU if there is one",
    )
    group.add_argument(
        "--dtype",
        help="dtype to compute in: float32 or bfloat16; by default float32 on a CPU and bfloat16 on a GPU",
    )
    group.add_argument(
        "--quantize",
        choices=QUANTIZE,
        help="compute matmuls in 8 bits, faster but with a small error: int8 on a CPU, fp8 on a GPU; by default off",
    )


def _add_max_length(group: "argparse._ArgumentGroup", meaning: str) -> None:
    group.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help=f"{meaning}; by default the model's limit",
    )


def _add_max_batch_tokens(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--max-batch-tokens",
        type=positive,
        metavar="N",
        help="maximum number of tokens computed in one batch; by default chosen for the device",
    )


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument MODEL, which commands about a single model have; `choose_model` reads it."""
    parser.add_argument(
        "name", nargs="?", type=model_argument, metavar="MODEL", help="same as --model"
    )


def add_prompt_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --prompt-name and --prompt, which exclude each other; `what` is what they apply to: "text" or "query"."""
    group = parser.add_mutually_exclusive_group()
    target = "each text" if what == "text" else "the query"
    default = "the model's default prompt" if what == "text" else 'the prompt named "query"'
    group.add_argument(
        "--prompt-name",
        metavar="NAME",
        help=f"name of one of the model's prompts, to put before {target}; by default {default}, if there is one",
    )
    group.add_argument(
        "--prompt",
        metavar="TEXT",
        help=f"text to put before {target}, instead of one of the model's prompts",
    )


def add_input_options(
    parser: argparse.ArgumentParser,
    *,
    too_long: str = "of more than --max-length tokens",
    jobs: bool = False,
) -> None:
    """Add the input files, and the options that say how to read them and what to do about errors.

    Args:
        parser: the parser of the command.
        too_long: which texts are too long, for the help text.
        jobs: whether the command can run as a job; jobs skip texts with an error by default.
    """
    parser.add_argument(
        "files",
        nargs="*",
        type=path_argument,
        metavar="FILE",
        help="input: a .jsonl, .ndjson, .csv, .tsv or .parquet file, a plain text file with one text per line, a "
        "folder, a pattern in quotes such as 'docs/**/*.md', or - for stdin; by default stdin. Files may be "
        "compressed: a.jsonl.gz, a.csv.zst (.zst needs pip install 'lastword[bulk]'). Files, folders and patterns may "
        "also be URLs (s3://, gs://, https:// and others that fsspec knows). In a folder and its subfolders, all "
        ".txt, .md, .jsonl, .ndjson, .csv, .tsv and .parquet files are read, except hidden files and folders, links "
        "to folders, and files that lastword wrote (it recognises its own vector files only if they were written with "
        "-o or --header)",
    )
    add_format_options(parser)
    _add_document_options(parser)
    parser.add_argument(
        "--on-long",
        choices=("cut", "error"),
        default="cut",
        help=f"what to do with a text {too_long}: truncate it (cut), or treat it as an error (see --on-error); by "
        "default cut",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        help="what to do when a text cannot be read, embedded or scored: stop, or skip the text and go on; a FILE on "
        "the command line that does not exist always ends the run; by default stop"
        + (", except for jobs" if jobs else ""),
    )
    parser.add_argument(
        "--errors",
        type=path_argument,
        metavar="FILE",
        help="with --on-error skip, list the skipped texts and files in this file, as JSON lines with the fields "
        "`path`, `line` (absent for a whole file) and `error`, and for a chunk (see --chunk) also `chunk`, `start` and "
        "`end`; the list of an earlier run is removed first. Unless --quiet is set, one line on stderr also says how "
        "many there are",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print no progress bar, notices or final counts; texts skipped because of an error are still counted in "
        "one line, unless --errors lists them",
    )


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for reading input files."""
    parser.add_argument(
        "--input-format",
        choices=FORMATS,
        help="format of all inputs; by default each file's extension decides, and stdin is txt",
    )
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument(
        "--text-field",
        type=name_argument,
        default="text",
        metavar="NAME",
        help="name of the field or column that holds the text; in JSON lines, OUTER.INNER is the field INNER of the "
        "object OUTER; by default `text`",
    )
    texts.add_argument(
        "--template",
        type=text_argument,
        metavar="TEMPLATE",
        help="make the text from several fields: '{title}: {doc.body}' inserts the value of the field `title`, then "
        "the value of the field `body` in the object `doc`; numbers are written as in JSON, a missing or null field is "
        "an error, and {{ and }} stand for braces. Replaces --text-field",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        type=text_argument,
        metavar="FIELD=VALUE",
        help="use only records whose FIELD equals VALUE. With != instead of =, FIELD must differ from VALUE; with <, "
        "<=, > or >=, it must be a number for which that comparison with VALUE is true. A missing field counts as "
        "null. Numbers are compared by value, and anything else as written, ignoring white space around VALUE. May be "
        "repeated: a record must satisfy all conditions",
    )
    parser.add_argument(
        "--delimiter",
        type=delimiter_argument,
        metavar="CHARACTER",
        help="character between the columns of all .csv and .tsv files; for a tab, write the word tab; by default a "
        "comma, or a tab in .tsv files; if the text column is not found that way, comma, semicolon, tab and vertical "
        "bar (|) are tried in turn",
    )


def _add_document_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for folders, whole files and chunks."""
    group = parser.add_argument_group("documents")
    group.add_argument(
        "--files",
        dest="whole",
        action="store_true",
        help="read each file as one text, and HTML files without their tags; in a folder, read the .txt, .md, .html "
        "and .htm files",
    )
    group.add_argument(
        "--ignore",
        action="append",
        default=[],
        type=path_argument,
        metavar="PATTERN",
        help="leave out files and folders that match this pattern, such as 'drafts/' or '*.bak.md', by the rules of "
        ".gitignore, except that *.txt matches .TXT too; may be repeated; needs pip install 'lastword[documents]'",
    )
    group.add_argument(
        "--chunk",
        type=positive,
        metavar="N",
        help="split each text at the ends of paragraphs, sentences or words, into chunks of at most N tokens; needs "
        "pip install 'lastword[documents]'",
    )
    group.add_argument(
        "--overlap",
        type=positive,
        metavar="M",
        help="let each chunk begin with up to M tokens of the chunk before it; by default none",
    )


def find_inputs(args: argparse.Namespace, queries: Sequence[Source] = ()) -> list[Source]:
    """Return the input files that the arguments name, and print notices about files that were left out.

    Args:
        args: the command's arguments.
        queries: the file of queries, if there is one; --delimiter applies to this file too.

    Raises:
        InputError: options cannot be combined, or an input cannot be used.
    """
    from lastword.cli.documents.paths import Finder

    if args.whole and args.input_format is not None:
        got = f"--input-format {args.input_format}"
        raise InputError("--files", "reads each file as one text", got=got, expected="one of them")
    if args.overlap is not None and args.chunk is None:
        raise InputError("--overlap", "needs --chunk", remedy="Pass --chunk N too.")
    if args.overlap is not None and args.overlap >= args.chunk:
        got = f"--chunk {args.chunk} --overlap {args.overlap}"
        raise InputError("--overlap", "is too large", got=got, expected="less than --chunk")
    finder = Finder(
        args.input_format, whole=args.whole, ignore=args.ignore, command=_call_on_stdin(args)
    )
    inputs = finder.find(args.files)
    problem = next(filter(None, (source.problem for source in inputs)), None)
    if problem is not None and args.on_error != "skip":
        problem.remedy = "Pass --on-error skip to leave it out."
        raise problem
    refuse_fields(args, inputs)
    refuse_delimiter((*inputs, *queries), args.delimiter)
    console.say_all(finder.notices(), quiet=args.quiet)
    return inputs


def refuse_delimiter(inputs: Iterable[Source], delimiter: str | None) -> None:
    """Refuse a delimiter if no input is a table.

    Raises:
        InputError: there is a delimiter, and no input is CSV or TSV.
    """
    if delimiter is not None and not any(each.format in ("csv", "tsv") for each in inputs):
        expected = "such an input, or --input-format csv"
        raise InputError("--delimiter", "is for .csv and .tsv files", expected=expected)


def fields_of(args: argparse.Namespace) -> Fields:
    """Return the fields and conditions that --text-field, --template, --id-field and --where name.

    Raises:
        InputError: --template or --where is not valid.
    """
    text = args.text_field if args.template is None else Template(args.template)
    conditions = [Condition.parse(each) for each in args.where]
    return Fields(text, getattr(args, "id_field", None), conditions)


def refuse_fields(args: argparse.Namespace, inputs: Sequence[Source]) -> None:
    """Refuse options about fields that do not fit the inputs or each other.

    Raises:
        InputError: an option is refused, or --template or --where is not valid.
    """
    fields_of(args)
    refuse_field(inputs, args.text_field)
    if args.template is not None and getattr(args, "chunk", None) is not None:
        got, remedy = f"--chunk {args.chunk}", "Make the texts first, and name their field."
        raise InputError("--template", "makes texts that cannot be split", got=got, remedy=remedy)
    plain = next((each for each in inputs if each.format not in _WITH_FIELDS), None)
    for option in ("template", "where", "id_field"):
        if plain is not None and getattr(args, option, None):
            raise InputError(
                f"--{option.replace('_', '-')}",
                "needs records with fields",
                got=f"plain text in {plain.name}",
                expected="JSON lines, CSV, TSV or Parquet",
                remedy="Name such files, or pass --input-format.",
            )


def skipped_line(skipped: int) -> str:
    """Return in words how many records --where skipped."""
    return f"{count(skipped, 'record')} skipped by --where"


def skipped_notices(fields: Fields) -> Iterator[str]:
    """Yield one line about the records that --where skipped, if there are any."""
    if fields.skipped:
        yield skipped_line(fields.skipped)


def _call_on_stdin(args: argparse.Namespace) -> str:
    """Return the command line that reads its input from stdin instead of files, for the remedies of errors."""
    words = ["lastword", args.command]
    if getattr(args, "queries", None) is not None:
        words += ["--queries", shlex.quote(args.queries)]
    elif hasattr(args, "query"):
        words.append("QUERY")
    return " ".join((*words, "-"))


def refuse_field(inputs: Iterable[Source], field: str, option: str = "--text-field") -> None:
    """Refuse a field name given with --text-field, or with the option `option`, if no input has named fields.

    Raises:
        InputError: `field` is not the default, "text", and no input is JSON lines, CSV, TSV or Parquet.
    """
    if field != "text" and not any(each.format in _WITH_FIELDS for each in inputs):
        raise InputError(
            option,
            "is for .jsonl, .csv, .tsv and .parquet files",
            got=repr(field),
            expected="such an input, or --input-format",
        )


def open_splitter(
    args: argparse.Namespace, embedder: "Embedder | Reranker", prompt: str
) -> "Splitter | None":
    """Return a splitter for --chunk, or None if --chunk is not given.

    Args:
        args: the command's arguments.
        embedder: the model, whose tokenizer counts the tokens.
        prompt: the text that will go before each chunk.
    """
    if args.chunk is None:
        return None
    from lastword.cli.documents.chunks import Splitter

    return Splitter(embedder, args.chunk, args.overlap or 0, prompt)


def add_known_as(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --as, which names the published model that a folder holds; in the help, `what` comes before "used"."""
    parser.add_argument(
        "--as",
        dest="known_as",
        type=model_argument,
        metavar="ID",
        help=f"Hugging Face id of the published model whose {what} used; by default MODEL itself or, for a local "
        "folder, the published model with the folder's name",
    )


def choose_model(args: argparse.Namespace) -> None:
    """Set `args.model` from MODEL or --model, for a command that has both.

    Raises:
        ConfigError: both are given.
    """
    if args.name is not None and args.model is not None:
        raise ConfigError("MODEL", "given twice", got="MODEL and --model", expected="one of them")
    args.model = args.model if args.name is None else args.name


def fill_in_model(args: argparse.Namespace) -> None:
    """Set `args.model` to the built-in model's folder if no model is given, for commands that need a name."""
    from lastword.weights import locate

    args.model = str(locate(None).folder) if args.model is None else args.model


def embedder_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the model options as keyword arguments of `Embedder`."""
    return {
        **_info_options(args),
        "truncate_dim": args.dim,
        "max_batch_tokens": args.max_batch_tokens,
    }


def _info_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that `ModelInfo` and `RerankerInfo` both have, as keyword arguments."""
    return {
        "device": args.device,
        "dtype": args.dtype,
        "quantize": args.quantize,
        "revision": args.revision,
        "local_files_only": args.local_files_only,
        "max_length": args.max_length,
    }


def open_embedder(args: argparse.Namespace) -> "Embedder":
    """Load the embedding model that the options name."""
    from lastword.embedder import Embedder

    show = False if args.quiet else None
    return Embedder(args.model, show_progress_bar=show, **embedder_options(args))


def open_reranker(args: argparse.Namespace) -> "Reranker":
    """Load the reranker that --model names."""
    from lastword.reranker import Reranker

    show = False if args.quiet else None
    chosen = {**_info_options(args), "max_batch_tokens": args.max_batch_tokens}
    return Reranker(args.model, show_progress_bar=show, **chosen)


def open_second_reranker(args: argparse.Namespace, model: str) -> "Reranker":
    """Load the reranker `model`, for a command whose model options are mainly for an embedding model.

    Of the model options, only --device, --dtype, --quantize and --local-files-only apply to the reranker too.
    """
    from lastword.reranker import Reranker

    show = False if args.quiet else None
    return Reranker(model, show_progress_bar=show, **_options_of_both(args))


def open_second_reranker_info(args: argparse.Namespace, model: str) -> "RerankerInfo":
    """Do the same as `open_second_reranker`, without loading the weights."""
    from lastword.reranker_info import RerankerInfo

    return RerankerInfo(model, **_options_of_both(args))


def _options_of_both(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that apply both to the embedding model and to the reranker beside it."""
    return {n: getattr(args, n) for n in ("device", "dtype", "quantize", "local_files_only")}


def open_embedder_info(args: argparse.Namespace) -> "ModelInfo":
    """Open the embedding model that the options name, without its weights, which may not fit into memory."""
    from lastword.model_info import ModelInfo

    return ModelInfo(args.model, truncate_dim=args.dim, **_info_options(args))


def model_is_reranker(args: argparse.Namespace) -> bool:
    """Return whether the model that the options name is a reranker, by its files or else by its name."""
    if args.model is None:
        return False
    from lastword.reranker_info import is_reranker
    from lastword.weights import CHAT_TEMPLATE, locate

    where = {"revision": args.revision, "local_files_only": args.local_files_only}
    found = locate(args.model, also=(CHAT_TEMPLATE,), **where)
    return is_reranker(found.folder, found.name)


def open_reranker_info(args: argparse.Namespace) -> "RerankerInfo":
    """Open the reranker that the options name, without its weights.

    Raises:
        ConfigError: --dim is given; a reranker computes no vectors.
    """
    from lastword.reranker_info import RerankerInfo, refuse_for_reranker

    refuse_for_reranker({"--dim": args.dim})
    return RerankerInfo(args.model, **_info_options(args))
