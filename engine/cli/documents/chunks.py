"""Split texts into pieces of at most so many tokens, on borders of paragraphs, sentences or words.

A piece is `text[start:end]` of its text, in characters. The borders are those of semantic-text-splitter, the tokens
those of the model's tokenizer, without its template and without the prompt.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from json.decoder import JSONDecoder
from typing import TYPE_CHECKING

from lastword.cli.read import Bad, Chunk, Record, split_ending, stop
from lastword.errors import ConfigError, InputError, require_extra

if TYPE_CHECKING:
    from lastword.embedder import Embedder
    from lastword.reranker import Reranker

_PACKAGE = "semantic-text-splitter"
# A long text is split window by window, so that time grows with its length only and Ctrl-C is answered.
_WINDOW = 16_384  # characters
_WINDOW_PER_TOKEN = 16  # characters; English has 4 to 5
_BLANK_LINES = re.compile(r"(?:[^\S\n]*+\n)*+")
_JSON_SPACE = re.compile(r"[ \t\r\n]*")
# Numbers stay as they are written; they are only stepped over.
_DECODER = JSONDecoder(parse_int=str, parse_float=str)


class Splitter:
    """Splits texts for one model.

    Args:
        embedder: the model.
        size: the most tokens of a piece; a single character may have more.
        overlap: the most tokens that a piece shares with the one before it.
        prompt: the prompt that is put before each piece.

    Raises:
        ConfigError: the package is not installed, or a piece with its prompt would be longer than max_length.
    """

    def __init__(
        self, embedder: "Embedder | Reranker", size: int, overlap: int, prompt: str
    ) -> None:
        with require_extra(_PACKAGE, "documents", "--chunk"):
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        tokenizer = embedder.info.tokenizer
        around = tokenizer.num_template_tokens + tokenizer.count(prompt)
        if size + around > embedder.max_length:
            raise ConfigError(
                "--chunk",
                "pieces would be cut",
                got=f"{size} and {around} of the prompt and template",
                expected=f"together at most {embedder.max_length} tokens",
                remedy="Lower --chunk, or raise --max-length if the model allows it.",
            )
        self._text = TextSplitter.from_callback(tokenizer.count, size, overlap)
        self._markdown = MarkdownSplitter.from_callback(tokenizer.count, size, overlap)
        self._window = max(_WINDOW, _WINDOW_PER_TOKEN * size)
        self._size, self._overlap = size, overlap

    def settings(self) -> Mapping[str, str]:
        """Return everything that the pieces of a text depend on, besides the tokenizer."""
        return {
            "chunk": str(self._size),
            "overlap": str(self._overlap),
            "splitter": f"{_PACKAGE} {version(_PACKAGE)}, windows of {self._window}",
        }

    def pieces(
        self, records: Iterable[Record], text_field: str, bad: Bad = stop
    ) -> Iterator[Record]:
        """Yield a record for every piece, whose JSON has the piece in place of the text; a blank text has no piece.

        Raises:
            InputError: a text cannot be tokenised.
        """
        for record in records:
            before, after = around_text(record.fields, text_field)
            markdown = split_ending(record.path)[1] in ("md", "markdown")
            try:
                for i, (start, piece) in enumerate(self.split(record.text, markdown=markdown)):
                    chunk = Chunk(i, start, start + len(piece))
                    fields = f"{before}{json.dumps(piece, ensure_ascii=False)}{after}"
                    yield replace(record, text=piece, fields=fields, chunk=chunk)
            except InputError as error:
                if error.index is not None:  # of the tokenizer
                    error.where, error.index = record.where, None
                bad(error, record.path, record.line)

    def split(self, text: str, *, markdown: bool = False) -> Iterator[tuple[int, str]]:
        """Yield the pieces of a text, each after the position of its first character."""
        splitter = self._markdown if markdown else self._text
        start, width = 0, self._window
        while True:
            blank = _BLANK_LINES.match(text, start)
            start = start if blank is None else blank.end()
            found = splitter.chunk_indices(text[start : start + width])
            last = start + width >= len(text)
            # The last piece of a window may end too early; the next window begins with it.
            kept = found if last else found[:-1]
            yield from ((start + at, piece) for at, piece in kept)
            if last:
                return
            if kept:
                start, width = start + found[-1][0], self._window
            else:
                width *= 2


def placed(records: Iterable[Record], bad: Bad = stop) -> Iterator[Record]:
    """Yield the records with their places added to their JSON.

    Raises:
        InputError: a record already has a field of such a name.
    """
    for record in records:
        place = record.place()
        taken = next((name for name in place if name in record.names), None)
        if taken is None:
            yield replace(
                record, fields=f"{record.fields}, {json.dumps(place, ensure_ascii=False)[1:-1]}"
            )
            continue
        error = InputError(
            record.where,
            f"has a field {taken!r} of its own",
            expected=f"none of {', '.join(place)}, which are added to tell where each vector is from",
            remedy="Rename the field."
            if record.chunk is not None or record.line is None
            else "Rename the field, or embed each file by itself.",
        )
        bad(error, record.path, record.line)


def around_text(fields: str, text_field: str) -> tuple[str, str]:
    """Split the JSON of a record, without its closing brace, at the value of a field that it has.

    Args:
        fields: the JSON, which is valid.
        text_field: the field, as `read.read` takes it.
    """
    end = _members(fields + "}", 0)
    while text_field not in end:
        head, _, text_field = text_field.partition(".")
        end = _members(fields, end[head][0])
    start, stop = end[text_field]
    return fields[:start], fields[stop:]


def _members(text: str, at: int) -> dict[str, tuple[int, int]]:
    """Return where the value of each member begins and ends, of the JSON object that begins at `at`."""
    found: dict[str, tuple[int, int]] = {}
    at = _skip(text, at + 1)
    while text[at] == '"':
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        found[name] = start, end
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def _skip(text: str, at: int) -> int:
    space = _JSON_SPACE.match(text, at)
    return at if space is None else space.end()
