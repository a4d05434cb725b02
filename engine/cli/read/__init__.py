r"""Read records, each with its place, one at a time: from text, JSON lines, CSV, TSV and Parquet files, or whole files.

Files may be local or have URLs. All files other than Parquet may be compressed (.gz, .zst) and must be valid UTF-8; a
byte order mark at the start is skipped. A line ends with \n or \r\n; any other character, such as a lone \r, is part
of the line. Only one record, of at most `lines.MAX_RECORD` characters, is held in memory; of a Parquet file, a batch of
rows.
This package knows nothing about models or vectors; the records go to `cli/stream.py` or `cli/commands/rerank.py` next.
"""

from lastword.cli.read.fields import Condition, Fields, Template
from lastword.cli.read.formats import read
from lastword.cli.read.kinds import (
    FORMATS,
    RECORDS,
    STDIN,
    Part,
    Source,
    sources,
    split_ending,
    unpacked_name,
)
from lastword.cli.read.lines import MAX_RECORD, Meter
from lastword.cli.read.opening import KeptOpen, open_file
from lastword.cli.read.record import PLACE, Chunk, OnBad, Record, more_fields, stop
from lastword.cli.read.urls import (
    ReadError,
    UrlError,
    files_of,
    leads_to_many,
    scheme_of,
    status_of,
)

__all__ = [
    "FORMATS",
    "MAX_RECORD",
    "PLACE",
    "RECORDS",
    "STDIN",
    "Chunk",
    "Condition",
    "Fields",
    "KeptOpen",
    "Meter",
    "OnBad",
    "Part",
    "ReadError",
    "Record",
    "Source",
    "Template",
    "UrlError",
    "files_of",
    "leads_to_many",
    "more_fields",
    "open_file",
    "read",
    "scheme_of",
    "sources",
    "split_ending",
    "status_of",
    "stop",
    "unpacked_name",
]
