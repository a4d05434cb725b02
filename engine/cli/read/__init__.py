r"""Read records from text, JSON lines and CSV files, or whole files, one at a time, each with its place.

Input is strict UTF-8 (a byte order mark at the start is skipped). A line ends with \n or \r\n; any other character,
such as a lone \r, belongs to the line. One record is held in memory, and it has at most `lines.MAX_RECORD` characters.
This package knows nothing about models or vectors; `stream.py` is the next step in the flow.
"""

from lastword.cli.read.formats import read
from lastword.cli.read.kinds import FORMATS, RECORDS, STDIN, Source, sources, split_ending
from lastword.cli.read.lines import MAX_RECORD, Meter
from lastword.cli.read.record import PLACE, Bad, Chunk, Record, stop

__all__ = [
    "FORMATS",
    "MAX_RECORD",
    "PLACE",
    "RECORDS",
    "STDIN",
    "Bad",
    "Chunk",
    "Meter",
    "Record",
    "Source",
    "read",
    "sources",
    "split_ending",
    "stop",
]
