"""Recognise the format of an input file by its name, and the kind of a file that is not UTF-8 by its first bytes."""

import errno
import os
import shlex
import stat
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lastword.cli.read.urls import name_in, scheme_of
from lastword.errors import InputError, valid_name

FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet")
STDIN = "-"
# Extensions of files that hold records. --files refuses them, because it would embed their syntax too.
RECORDS = ("jsonl", "ndjson", "csv", "tsv", "parquet")
# Extensions of compressed files that can be read. The extension before one of these tells the format: "docs.jsonl.gz".
PACKED = ("gz", "zst")
_RECORDS = "Leave out --files to read its records."
_AS_IT_IS = "To read it as it is, pipe it in: {command} --files < {file}."

_JSON_LINES = "Convert it to JSON lines (.jsonl), one record per line."
_AS_TEXT = "Convert it to text (.txt) or JSON lines (.jsonl) first."
_UNPACKED = "Unpack it first."
_PIPED = "Unpack it first, or use a pipe: {unpack} {file}| {command} {options}."
_UNPACK = {"gz": "zcat", "bz2": "bzcat", "xz": "xzcat", "zst": "zstdcat", "zip": "unzip -p"}
_REFUSED = {
    "json": "Convert it to JSON lines: jq -c '.[]' {file} > {lines}. If it is already JSON lines, "
    "pass --input-format jsonl.",
    "parquet": "Name the file .parquet, or pass --input-format parquet.",
    **dict.fromkeys(("arrow", "feather", "orc", "avro", "xlsx", "xls"), _JSON_LINES),
    **dict.fromkeys(("npy", "npz", "safetensors", "bin", "pt", "pkl", "db", "sqlite"), _AS_TEXT),
    **dict.fromkeys(("pdf", "doc", "docx", "odt", "pptx", "epub"), _AS_TEXT),
    **dict.fromkeys(
        ("html", "htm"), "Pass --files to read each file as one text, without its tags."
    ),
    **dict.fromkeys(("tar", "tgz", "7z"), "Unpack it first."),
    **dict.fromkeys(_UNPACK, _UNPACKED),
}
# For a file that is not UTF-8: its first bytes, its kind in words, and its encoding if it is text, else an extension
# with a suitable remedy in `_REFUSED`.
_KINDS = (
    (b"\x1f\x8b", "a gzip file", "gz"),
    (b"PK\x03\x04", "a zip file", "zip"),
    (b"BZh", "a bzip2 file", "bz2"),
    (b"\xfd7zXZ", "an xz file", "xz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "zst"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "UTF-32"),
    (b"\xff\xfe", "UTF-16 text", "UTF-16"),
    (b"\xfe\xff", "UTF-16 text", "UTF-16"),
    (b"PAR1", "a Parquet file", "parquet"),
    (b"%PDF-", "a PDF file", "pdf"),
    (b"\x89PNG", "an image", "doc"),
    (b"\xff\xd8\xff", "an image", "doc"),
)

# Bytes that have no meaning in Windows-1252.
_NOT_IN_1252 = (0x81, 0x8D, 0x8F, 0x90, 0x9D)


# Cached, because every record needs the name of its file.
_cached_name = lru_cache(maxsize=64)(valid_name)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file, from one record's beginning to another's.

    Args:
        start: the first byte.
        stop: the byte after the last one.
        lines_before: the number of lines before `start`.
        header: the bytes of the file before its first record: the header of a table, or nothing.
    """

    start: int
    stop: int
    lines_before: int
    header: bytes = b""


@dataclass(frozen=True, slots=True)
class Source:
    """An input: a file, or stdin.

    Args:
        path: the path or URL, or - for stdin; the file is compressed if its extension is one of `PACKED`.
        format: the format of the content: one of `FORMATS`, or `whole` or `html` for a file that is one text.
        found: whether the file was found in a folder or by a pattern, not named itself.
        command: the command line that reads the same input from stdin, for remedies; None if there is none.
        problem: why an input that was found cannot be read; it may be a folder. None for an input that may be opened.
        part: the part of the file to read; None for all of it.
    """

    path: str
    format: str
    found: bool = False
    command: str | None = None
    problem: InputError | None = None
    part: Part | None = None

    @property
    def packed(self) -> str | None:
        """The extension of a compressed file (see `PACKED`), None for any other input."""
        return packing_of(self.path)

    @property
    def lines_before(self) -> int:
        """The number of lines of the file before the first line that is read from its stream."""
        return 0 if self.part is None else self.part.lines_before - self.part.header.count(b"\n")

    @property
    def name(self) -> str:
        r"""The name of this input in messages and output, as valid Unicode: a byte that is not UTF-8 becomes \xNN."""
        return "stdin" if self.path == STDIN else _cached_name(self.path)


def sources(
    files: Sequence[str],
    input_format: str | None,
    *,
    whole: bool = False,
    command: str | None = None,
    named: Collection[str] | None = None,
) -> list[Source]:
    """Return the inputs, after checking that each exists and has a supported format.

    Args:
        files: paths of files, or - for stdin; none means stdin.
        input_format: the format of every file; if None, each file's extension decides.
        whole: whether each file is one text.
        command: the command line that reads the same input from stdin, for remedies; None if there is none.
        named: the files that the user named. The others were found, and a found file that cannot be read gets a
            `problem`. If None, all were named.

    Raises:
        InputError: there is no input, stdin is given twice, or a file cannot be read or has an unsupported format.
        OSError: a file is missing.
    """
    paths = list(files) or [STDIN]
    if not files and sys.stdin is not None and sys.stdin.isatty():
        raise InputError("FILE", "no input", remedy="Name a file, or - for stdin.")
    if paths.count(STDIN) > 1:
        raise InputError("FILE", "- is given twice", remedy="stdin can be read only once.")
    every = []
    for path in paths:
        found = named is not None and path not in named
        problem = _unreadable(path) if found else None
        if problem is None:
            kind = _format(path, input_format, whole=whole, command=command)
        else:
            plain = "whole" if whole else _format_of(split_ending(unpacked_name(path))[1])
            kind = input_format or plain
        every.append(Source(path, kind, found, command, problem))
    return every


def _unreadable(path: str) -> InputError | None:
    """Return the error for a file or folder that may not be read, or None."""
    if scheme_of(path) is not None:
        return None  # opening it reports any error
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            os.scandir(path).close()
        elif not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        return InputError(valid_name(path), f"cannot be read ({error.strerror or error})")
    return None


def _format(path: str, input_format: str | None, *, whole: bool, command: str | None) -> str:
    if path == STDIN and input_format == "parquet":
        raise InputError("stdin", "cannot be read as Parquet", expected="a file")
    if path == STDIN:
        return input_format or ("whole" if whole else "txt")
    if scheme_of(path) is None:
        _check_file(path)
    packed = packing_of(path)
    root, ending = split_ending(unpacked_name(path))
    if packed is not None and (input_format or ending) == "parquet":
        what = f"compressed Parquet (.{packed}) cannot be read"
        raise InputError(path, what, remedy=f"{_UNPACKED} Parquet files are compressed inside.")
    if input_format is not None:
        return input_format
    if whole and ending in ("html", "htm"):
        return "html"
    if whole and ending in (*RECORDS, "json"):
        remedy = (
            None if command is None else _AS_IT_IS.format(command=command, file=shlex.quote(path))
        )
        if ending != "json" and packed is None:
            remedy = " ".join(filter(None, (_RECORDS, remedy)))
        raise InputError(path, "holds records, not one text", got="--files", remedy=remedy)
    if ending in _REFUSED and ending not in FORMATS:
        # "docs.jsonl.bz2" holds JSON lines
        inner = "whole" if whole else _format_of(split_ending(root)[1])
        unpacked = Source(unpacked_name(path), inner, command=command)
        remedy = _convert_remedy(ending, unpacked)
        remedy = remedy if packed is None or remedy == _UNPACKED else f"{_UNPACKED} {remedy}"
        raise InputError(path, f"unsupported input format .{ending}", remedy=remedy)
    return "whole" if whole else _format_of(ending)


def _check_file(path: str) -> None:
    """Check that a path leads to a file that may be read."""
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise InputError(path, "is a folder", expected="a file", remedy="Name the files in it.")
    if not os.access(path, os.R_OK):
        raise InputError(path, "cannot be read (permission denied)")


def split_ending(path: str) -> tuple[str, str]:
    """Split a path into its root and its extension; the extension comes in lower case and without its dot."""
    root, dotted = os.path.splitext(name_in(path))
    return root, dotted.lower().removeprefix(".")


def packing_of(path: str) -> str | None:
    """Return the extension of a compressed file's path if it is one of `PACKED`, else None."""
    ending = split_ending(path)[1]
    return ending if ending in PACKED and path != STDIN else None


def unpacked_name(path: str) -> str:
    """Return a path without the extension of a compressed file."""
    return path if packing_of(path) is None else split_ending(path)[0]


def _format_of(ending: str) -> str:
    ending = "jsonl" if ending == "ndjson" else ending
    return ending if ending in FORMATS else "txt"


def _convert_remedy(ending: str, source: Source) -> str:
    """Return the remedy for a file whose extension, `ending`, is in `_REFUSED`.

    If the file is compressed, `source.format` is the format of its content.
    """
    root, file = split_ending(source.path)[0], shlex.quote(source.path)
    if ending not in _UNPACK or source.command is None:
        return _REFUSED[ending].format(file=file, lines=shlex.quote(f"{root}.jsonl"))
    whole = source.format in ("whole", "html")
    return _PIPED.format(
        unpack=_UNPACK[ending],
        file="" if source.path == STDIN else f"{file} ",
        command=source.command,
        options="--files" if whole else f"--input-format {source.format}",
    )


def _iconv_remedy(encoding: str, source: Source) -> str:
    """Return the remedy for text in another encoding: the command that converts a.txt to a.utf8.txt."""
    command = f"iconv -f {encoding} -t utf-8"
    if source.path != STDIN:
        path = f"./{source.path}" if source.path.startswith("-") else source.path
        root, dotted = os.path.splitext(path)
        command += f" {shlex.quote(path)} > {shlex.quote(f'{root}.utf8{dotted}')}"
    again = ", then move the original away or leave it out with --ignore" if source.found else ""
    return f"run {command} to convert it{again}."


def kind_of(first: str) -> tuple[str, str] | None:
    """Return the kind, and the encoding or extension, of a file that begins with `first`; None if `_KINDS` has none."""
    beginning = first.encode(errors="surrogateescape")
    return next(
        ((kind, known) for start, kind, known in _KINDS if beginning.startswith(start)), None
    )


def not_utf8(where: str, line: str, bad: int, first: str, source: Source) -> InputError:
    """Create the error for an invalid byte.

    Args:
        where: the file and line.
        line: the line, in which each invalid byte is a lone surrogate.
        bad: the position of the first lone surrogate.
        first: the first characters of the file, from which its kind may be recognised.
        source: the file.
    """
    number = len(line[:bad].encode(errors="surrogateescape")) + 1
    got = f"byte 0x{ord(line[bad]) - 0xDC00:02x} (byte {number:,} of the line)"
    if (found := kind_of(first)) is not None:
        got, known = found
        text = known not in _REFUSED
        remedy = _sentence(_iconv_remedy(known, source)) if text else _convert_remedy(known, source)
    elif "\0" in line:
        remedy = "Name a file that holds text."
    elif _is_windows_1252(line):
        remedy = f"If it is Windows-1252, {_iconv_remedy('cp1252', source)}"
    else:
        remedy = f"If it is Latin-1, {_iconv_remedy('latin1', source)}"
    return InputError(where, "is not UTF-8", got=got, remedy=remedy)


def _is_windows_1252(line: str) -> bool:
    """Return whether an invalid byte of the line is printable in Windows-1252, such as €, but not in Latin-1."""
    invalid = (ord(each) - 0xDC00 for each in line if "\udc80" <= each <= "\udcff")
    return any(0x80 <= each < 0xA0 and each not in _NOT_IN_1252 for each in invalid)


def refuse_utf16(line: str, source: Source) -> None:
    """Refuse UTF-16 without a byte order mark: ASCII text in it is valid UTF-8, but every other byte is zero."""
    for start, encoding in ((0, "UTF-16BE"), (1, "UTF-16LE")):
        if len(line) > 3 and set(line[start::2]) == {"\0"}:
            remedy = _sentence(_iconv_remedy(encoding, source))
            raise InputError(f"{source.name}:1", "is not UTF-8", got="UTF-16 text", remedy=remedy)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
