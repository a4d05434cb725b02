"""Companion files: the files of a model other than its weights, which a merged or converted model copies.

Only files with known names are copied: tokenizer, configuration and the files that sentence-transformers reads, never
code or other weights.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from lastword.errors import WeightsError
from lastword.weights.files.dtypes import dtype_name
from lastword.weights.json_fields import read_object

CARD = "README.md"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
_NAMES = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "generation_config.json", "modules.json",
    "config_sentence_transformers.json", "sentence_bert_config.json", "LICENSE", "NOTICE",
)  # fmt: skip
_MODULES = "*/config.json"
PATTERNS = (*_NAMES, _MODULES, CARD)  # all files that a new model may copy, as patterns for the hub


def companions(folder: Path) -> Iterator[Path]:
    """List the files to copy, relative to their folder, without `config.json`."""
    yield from (Path(name) for name in _NAMES if (folder / name).is_file())
    yield from (path.relative_to(folder) for path in sorted(folder.glob(_MODULES)))


def differing_companions(folder: Path, other: Path) -> list[str]:
    """List the companion files that differ between two folders, licences aside."""
    names = {*companions(folder), *companions(other)} - {Path("LICENSE"), Path("NOTICE")}
    return sorted(
        path.as_posix() for path in names if _bytes(folder / path) != _bytes(other / path)
    )


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def copy_companions(source: Path, target: Path, dtypes: Iterable[torch.dtype]) -> None:
    """Copy a model's companion files, then `config.json` with the dtype of the new weights."""
    for path in companions(source):
        (target / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / path, target / path)
    values = read_object(source / CONFIG)
    stored = set(dtypes)
    if len(stored) == 1:
        keys = {"dtype", "torch_dtype"} & values.keys() or {"torch_dtype"}
        values |= dict.fromkeys(keys, dtype_name(stored.pop()))
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (target / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def vocabulary(folder: Path) -> dict[str, int]:
    """Read a tokenizer's tokens and their ids, including added tokens.

    Raises:
        WeightsError: the file is not a tokenizer.
    """
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    try:
        tokens: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    # The library raises plain Exception for any fault of the file.
    except Exception as problem:  # noqa: BLE001
        reason = str(problem).replace("\n", " ")
        raise WeightsError(str(path), f"not a tokenizer ({reason})") from None
    return tokens
