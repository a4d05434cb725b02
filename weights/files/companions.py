"""The files beside a checkpoint's weights: what a merged or converted model takes over from another folder.

Only known names are copied: tokenizer, configuration and what sentence-transformers reads, never code or
foreign weights.
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
PATTERNS = (*_NAMES, _MODULES, CARD)  # of all that a new model may take over, for the hub


def companions(folder: Path) -> Iterator[Path]:
    """List the files to take over, relative to their folder; `config.json` is not among them."""
    yield from (Path(name) for name in _NAMES if (folder / name).is_file())
    yield from (path.relative_to(folder) for path in sorted(folder.glob(_MODULES)))


def differing(folder: Path, other: Path) -> list[str]:
    """Name the companions of two folders that are not the same in both."""
    names = {*companions(folder), *companions(other)} - {Path("LICENSE"), Path("NOTICE")}
    return sorted(
        path.as_posix() for path in names if _bytes(folder / path) != _bytes(other / path)
    )


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def copy_companions(source: Path, target: Path, dtypes: Iterable[torch.dtype]) -> None:
    """Copy a model's companions, then `config.json` with the dtype of the new weights."""
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
    """Read a tokenizer's tokens and their ids, the added ones counted."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    try:
        tokens: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    # The library raises plain Exception, whatever is wrong with the file.
    except Exception as problem:  # noqa: BLE001
        reason = str(problem).replace("\n", " ")
        raise WeightsError(str(path), f"not a tokenizer ({reason})") from None
    return tokens
