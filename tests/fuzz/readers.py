"""The readers of untrusted bytes as targets of fuzzing: each takes bytes and fails if a reader misbehaves.

A reader may do one of two things: raise a LastwordError of one bounded line, or return a right result. What is right is
checked by a second reader where there is one: safetensors, json, the csv module.
"""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lastword.cli import read
from lastword.errors import LastwordError, printable
from lastword.weights import read_config, read_embedding_spec
from lastword.weights.files.header import read_header
from lastword.weights.json_fields import parse_json

MOST_CHARACTERS = 1000  # of a message
FORMATS = dict(enumerate(read.FORMATS))
SETTINGS = (
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
)


class Misbehaved(Exception):  # noqa: N818
    """A reader did neither of the two things that it may do."""


def check_message(message: str) -> None:
    """Fail unless a message is one line of bounded length."""
    if len(message) > MOST_CHARACTERS or printable(message) != message:
        raise Misbehaved(f"a message of {len(message)} characters: {message[:2000]!r}")


@contextmanager
def may_refuse() -> Iterator[None]:
    """Accept a LastwordError with a good message; let everything else pass through."""
    try:
        yield
    except LastwordError as error:
        check_message(str(error))


def header(data: bytes, folder: Path) -> None:
    """A safetensors file: every tensor of an accepted file lies in it, and safetensors accepts it too."""
    path = folder / "model.safetensors"
    path.write_bytes(data)
    with may_refuse():
        found = read_header(path)
        for name, tensor in found.items():
            if not 8 <= tensor.start <= tensor.start + tensor.num_bytes <= len(data):
                raise Misbehaved(f"tensor {name!r} outside the file")
        try:
            with safe_open(path, "pt") as file:
                theirs = set(file.keys())
        except SafetensorError as error:
            raise Misbehaved(f"safetensors refuses what was accepted: {error}") from error
        if theirs != set(found):
            raise Misbehaved(f"names {sorted(found)}, safetensors' {sorted(theirs)}")


def json_text(data: bytes, folder: Path) -> None:
    """Strict JSON: an accepted text has the value that the json module gives it."""
    with may_refuse():
        value = parse_json(data, "file.json")
        if value != json.loads(data):
            raise Misbehaved("another value than json's")


def settings(data: bytes, folder: Path) -> None:
    """One JSON file of a checkpoint, chosen by the first byte, in a folder whose other files are right."""
    if not data:
        return
    name, data = SETTINGS[data[0] % len(SETTINGS)], data[1:]
    path = folder / "model" / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    try:
        with may_refuse():
            config = read_config(folder / "model")
            read_embedding_spec(folder / "model", config)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


def records(data: bytes, folder: Path) -> None:
    """An input of `embed`, whose format the first byte chooses: every record is its own text, as JSON."""
    if not data:
        return
    kind, data = FORMATS[data[0] % len(FORMATS)], data[1:]
    path = folder / f"input.{kind}"
    path.write_bytes(data)
    with may_refuse():
        found = list(read.read(read.sources([str(path)], kind), read.Fields()))
        for record in found:
            carried = json.loads(record.fields + "}")
            if carried.get("text") != record.text or not carried.keys() >= record.names:
                raise Misbehaved(f"{record.where}: carries other fields than it was read from")
            record.text.encode()
        if [record.text for record in found] != _texts(data, kind):
            raise Misbehaved("other texts than a second reader's")


def _texts(data: bytes, kind: str) -> list[str]:
    """The texts of an input that was accepted, read in another way."""
    text = data.decode().removeprefix("\ufeff")
    if kind in ("csv", "tsv"):
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="," if kind == "csv" else "\t")
        names, *rows = [row for row in rows if row]
        return [row[names.index("text")] for row in rows]
    # Only \n and \r\n end a line.
    *lines, last = text.split("\n")
    lines = [line.removesuffix("\r") for line in lines] + ([last] if last else [])
    if kind == "txt":
        return lines
    return [json.loads(line)["text"] for line in lines if line.strip(" \t\r")]


TARGETS: Mapping[str, Callable[[bytes, Path], None]] = {
    "header": header,
    "json": json_text,
    "settings": settings,
    "records": records,
}


def prepare(folder: Path, checkpoint: Path) -> None:
    """Put into `folder` what the targets need: a checkpoint without its weights."""
    shutil.copytree(checkpoint, folder / "model", ignore=shutil.ignore_patterns("*.safetensors"))
