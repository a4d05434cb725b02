"""Split texts into chunks of a limited number of tokens, where paragraphs, sentences or words end.

A chunk is `text[start:end]`, in characters. The package semantic-text-splitter chooses where to split. The model's
tokenizer counts the tokens of a chunk, without the prompt and the tokens that the model puts around each text.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from json.decoder import JSONDecoder
from typing import TYPE_CHECKING

from lastword.cli.read import Chunk, OnBad, Record, more_fields, split_ending, stop
from lastword.errors import ConfigError, InputError, require_extra

if TYPE_CHECKING:
    from lastword.embedder import Embedder
    from lastword.reranker import Reranker

_PACKAGE = "semantic-text-splitter"
# A long text is split one window at a time, so that the time grows linearly and Ctrl-C takes effect. The window has at
# least _WINDOW characters, and _WINDOW_PER_TOKEN for each token of a chunk; English text has 4 to 5 per token.
_WINDOW = 16_384
_WINDOW_PER_TOKEN = 16
_BLANK_LINES = re.compile(r"(?:[^\S\n]*+\n)*+")
_JSON_SPACE = re.compile(r"[ \t\r\n]*")
# Only used to find where JSON values end, so numbers need no conversion.
_DECODER = JSONDecoder(parse_int=str, parse_float=str)


class Splitter:
    """Splits texts into chunks for one model.

    Args:
        embedder: the model.
        size: the maximum tokens of a chunk; a chunk of a single character may have more.
        overlap: the maximum tokens that a chunk shares with the chunk before it.
        prompt: the text that will go before each chunk.

    Raises:
        ConfigError: semantic-text-splitter is not installed, or a chunk and its prompt could exceed max_length.
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
                "chunks would be cut",
                got=f"{size} tokens and {around} for the prompt and special tokens",
                expected=f"together at most {embedder.max_length} tokens",
                remedy="Lower --chunk, or raise --max-length if the model allows it.",
            )
        self._text = TextSplitter.from_callback(tokenizer.count, size, overlap)
        self._markdown = MarkdownSplitter.from_callback(tokenizer.count, size, overlap)
        self._window = max(_WINDOW, _WINDOW_PER_TOKEN * size)
        self._size, self._overlap = size, overlap

    def settings(self) -> Mapping[str, str]:
        """Return the settings, besides the tokenizer, that the chunks of a text depend on: strings by name."""
        return {
            "chunk": str(self._size),
            "overlap": str(self._overlap),
            "splitter": f"{_PACKAGE} {version(_PACKAGE)}, windows of {self._window}",
        }

    def split_records(
        self, records: Iterable[Record], text_field: str, on_bad: OnBad = stop
    ) -> Iterator[Record]:
        """Yield a record for every chunk, with the chunk in place of the text in its JSON. A blank text has no chunks.

        Args:
            records: the records to split.
            text_field: the field of a record's JSON that holds the text, as for `Fields`.
            on_bad: called for each record with a text that cannot be tokenised.

        Raises:
            InputError: a text cannot be tokenised, and `on_bad` raises the error.
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
                if (
                    error.index is not None
                ):  # an error of the tokenizer, which does not know the record's place
                    error.where, error.index = record.where, None
                on_bad(error, record.path, record.line)

    def split(self, text: str, *, markdown: bool = False) -> Iterator[tuple[int, str]]:
        """Yield each chunk of a text as the position of its first character and the chunk itself."""
        splitter = self._markdown if markdown else self._text
        start, width = 0, self._window
        while True:
            blank = _BLANK_LINES.match(text, start)
            start = start if blank is None else blank.end()
            found = splitter.chunk_indices(text[start : start + width])
            last = start + width >= len(text)
            # The last chunk of a window may end too early, so the next window begins with it.
            kept = found if last else found[:-1]
            yield from ((start + at, piece) for at, piece in kept)
            if last:
                return
            if kept:
                start, width = start + found[-1][0], self._window
            else:
                width *= 2


def add_places(records: Iterable[Record], on_bad: OnBad = stop) -> Iterator[Record]:
    """Yield the records with the fields of `Record.place` added to their JSON.

    Raises:
        InputError: a record already has a field of such a name, and `on_bad` raises the error.
    """
    for record in records:
        place = record.place()
        taken = next((name for name in place if name in record.names), None)
        if taken is None:
            yield replace(record, fields=more_fields(record.fields) + place_fields(record))
            continue
        error = InputError(
            record.where,
            f"already has a field {taken!r}",
            expected=f"none of {', '.join(place)}, which are added to tell where each text comes from",
            remedy="Rename the field."
            if record.chunk is not None or record.line is None
            else "Rename the field, or embed each file by itself.",
        )
        on_bad(error, record.path, record.line)


def place_fields(record: Record) -> str:
    """Return what `add_places` adds to the JSON of a record, without the comma before it."""
    return json.dumps(record.place(), ensure_ascii=False)[1:-1]


def without_text(records: Iterable[Record], names: Iterable[str]) -> Iterator[Record]:
    """Yield the records without the fields that made their texts; the texts themselves stay, to be embedded.

    Args:
        records: the records.
        names: the fields, as for `Fields`.
    """
    dropped = list(names)
    for record in records:
        fields = f"{record.fields}}}"
        for name in dropped:
            fields = _without_member(fields, name)
        yield replace(record, fields=fields[:-1], names=record.names.difference(dropped))


def _without_member(text: str, wanted: str) -> str:
    """Return a JSON object without a field; `a.b` is the field of this name or, if there is none, b of object a."""
    members = {name: text[start:stop] for name, (start, stop) in _members(text, 0).items()}
    if wanted in members:
        del members[wanted]
    else:
        head, _, rest = wanted.partition(".")
        members[head] = _without_member(members[head], rest)
    pairs = (f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in members.items())
    return f"{{{', '.join(pairs)}}}"


def around_text(fields: str, text_field: str) -> tuple[str, str]:
    """Return the parts of a record's JSON before and after the value of the text field.

    Args:
        fields: the JSON object without its closing brace, as in `Record.fields`.
        text_field: the field, as for `Fields`; the object must have it.
    """
    end = _members(fields + "}", 0)
    while text_field not in end:
        head, _, text_field = text_field.partition(".")
        end = _members(fields, end[head][0])
    start, stop = end[text_field]
    return fields[:start], fields[stop:]


def _members(text: str, at: int) -> dict[str, tuple[int, int]]:
    """Return, for each member of the JSON object that begins at `at`, where its value begins and ends."""
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
