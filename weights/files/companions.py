"""Companion files: the files of a model, other than its weights, that are copied to a merged or converted model.

Only files with known names are copied: the tokenizer, the configuration, licences and the files that
sentence-transformers reads, but never code or other weights. A link to a file elsewhere on the machine is refused,
because the new model may be published.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from lastword.errors import WeightsError, list_some
from lastword.weights.files.dtypes import dtype_name
from lastword.weights.files.reading import (
    MAX_TOKENIZER_BYTES,
    has_file,
    missing_file_error,
    open_regular,
    read_error,
    refuse_foreign,
)
from lastword.weights.files.tokenizer_file import read_tokenizer
from lastword.weights.json_fields import parse_json, parse_object, show_value

CARD = "README.md"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
_MODULES = "modules.json"
_LICENCES = ("LICENSE", "NOTICE")
TOKENIZER_FILES = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
_NAMES = (
    *TOKENIZER_FILES, "chat_template.jinja", "generation_config.json", _MODULES, "config_sentence_transformers.json",
    *_LICENCES,
)  # fmt: skip
_TRANSFORMER = "sentence_*_config.json"  # sentence-transformers uses several such names
# All files that may be copied to a new model, as patterns for the hub.
PATTERNS = (*_NAMES, _TRANSFORMER, "*/config.json", CARD)
_LARGE = frozenset({TOKENIZER, "vocab.json", "merges.txt"})
# Limit for any other file. Model cards with tables of results are the largest.
_MAX_BYTES = 16 * 1024 * 1024
_PLAIN = re.compile(r"[\w-]{1,40}", re.ASCII)
_NONE = object()  # marks a missing value
_BLOB = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_DEPTH = 3  # number of levels at which keys are compared one by one; `prompts.query` is on the second level


def companions(folder: Path) -> list[Path]:
    """List a model's existing companion files, as paths relative to `folder`, without `config.json` and the model card.

    Raises:
        WeightsError: one of the known names belongs to something other than a file, such as a broken link.
        ConfigError: `modules.json` is not a list of modules.
    """
    settings = sorted(path.relative_to(folder) for path in folder.glob(_TRANSFORMER))
    listed = [*map(Path, _NAMES), *settings, *_module_configs(folder)]
    return [path for path in listed if has_file(folder / path)]


def check_companions(folder: Path) -> None:
    """Read the companion files and `config.json`, so that any error comes before the weights are written.

    Raises:
        WeightsError: one of the files cannot be read, or is a link to a file outside the model's folder.
        ConfigError: `modules.json` is not a list of modules.
    """
    for path in (*companions(folder), Path(CONFIG)):
        read_companion(folder, path)


def _module_configs(folder: Path) -> Iterator[Path]:
    """Yield the `config.json` of each folder that `modules.json` names; `module_list.py` checks the list itself."""
    if not has_file(folder / _MODULES):
        return
    modules = parse_json(read_companion(folder, Path(_MODULES)), str(folder / _MODULES))
    for module in modules if isinstance(modules, list) else []:
        place = module.get("path") if isinstance(module, dict) else None
        if isinstance(place, str) and place not in ("", "."):
            path = PurePosixPath(place)
            if not path.is_absolute() and ".." not in path.parts:
                yield Path(path) / CONFIG


def read_companion(folder: Path, path: Path) -> bytes:
    """Read one of a model's companion files.

    Args:
        folder: the model's folder.
        path: the file's path in that folder.

    Raises:
        WeightsError: the file is missing, not a regular file, too large, or a link to a file outside the folder; in
            the hub's cache, links to the blobs of the model's own repository are accepted.
    """
    place = folder / path
    _refuse_outside(folder, place)
    limit = MAX_TOKENIZER_BYTES if path.name in _LARGE else _MAX_BYTES
    try:
        with open_regular(place) as file:
            data = file.read(limit + 1)
    except OSError as problem:
        raise read_error(place, problem) from None
    if len(data) > limit:
        raise WeightsError(str(place), "too large", expected=f"at most {limit:,} bytes")
    if path.suffix == ".json":
        refuse_foreign(place, data)
    return data


def _refuse_outside(folder: Path, place: Path) -> None:
    """Refuse a file whose path contains a link that leads outside the model's folder."""
    real = Path(os.path.realpath(folder))
    try:
        target = Path(os.path.realpath(place, strict=True))
    except FileNotFoundError:
        raise missing_file_error(place) from None
    except OSError as problem:
        raise read_error(place, problem) from None
    if target.is_relative_to(real) or _is_blob(target, real):
        return
    raise WeightsError(
        str(place),
        "is stored outside the model's folder",
        got=str(target),
        expected="a file of the model",
        remedy="Only the model's own files are copied. Replace the link by the file, if it belongs to the model.",
    )


def _is_blob(target: Path, snapshot: Path) -> bool:
    """Return whether `target` is a blob of the repository in the hub's cache that contains the folder `snapshot`."""
    repository = snapshot.parent.parent
    return (
        snapshot.parent.name == "snapshots"
        and repository.name.startswith("models--")
        and target.parent == repository / "blobs"
        and _BLOB.fullmatch(target.name) is not None
    )


def differing_companions(folder: Path, other: Path) -> Iterator[tuple[str, str]]:
    """Compare the companion files of two folders, except licences; JSON files are parsed, and their values compared.

    Args:
        folder: the folder whose files are copied to the new model.
        other: the other folder.

    Yields:
        The name of each file that differs, and a description of the difference. For JSON it lists the keys that differ,
        each with its value in `other`, then its value in `folder`.
    """
    mine, theirs = set(companions(folder)), set(companions(other))
    for path in sorted(mine | theirs):
        name = path.as_posix()
        if name in _LICENCES:
            continue
        if path not in mine or path not in theirs:
            yield name, "only one of the two models has it"
            continue
        used, found = read_companion(folder, path), read_companion(other, path)
        if used == found:
            continue
        if path.suffix != ".json":
            yield name, "the content differs"
            continue
        parsed = (parse_json(used, str(folder / path)), parse_json(found, str(other / path)))
        if differing := list(_differences(*parsed)):
            yield name, list_some(differing)


def _differences(used: Any, found: Any, key: str = "", depth: int = _DEPTH) -> Iterator[str]:
    """Compare two JSON values; yield a description of each key, down to `depth` levels, whose values differ."""
    if depth and isinstance(used, dict) and isinstance(found, dict):
        for name in {**used, **found}:
            shown = name if _PLAIN.fullmatch(name) else show_value(name, 40)
            pair = (used.get(name, _NONE), found.get(name, _NONE))
            yield from _differences(*pair, f"{key}.{shown}" if key else shown, depth - 1)
    elif depth and isinstance(used, list) and isinstance(found, list):
        for number, pair in enumerate(zip_longest(used, found, fillvalue=_NONE)):
            yield from _differences(*pair, f"{key}.{number}" if key else str(number), depth - 1)
    elif _differ(used, found):
        values = ("none" if each is _NONE else show_value(each, 40) for each in (found, used))
        yield " ".join([*filter(None, (key,)), "{} (used: {})".format(*values)])


def _differ(used: object, found: object) -> bool:
    try:
        return used != found
    except RecursionError:  # nested more deeply than can be compared
        return True


def copy_companions(source: Path, target: Path, dtypes: Iterable[torch.dtype]) -> None:
    """Copy a model's companion files, then `config.json`, which states the new tensors' dtype if they all share one.

    Args:
        source: the folder of the existing model.
        target: the folder of the new model.
        dtypes: the dtypes of the new model's tensors.
    """
    for path in companions(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(read_companion(source, path))
    values = parse_object(read_companion(source, Path(CONFIG)), str(source / CONFIG))
    stored = set(dtypes)
    if len(stored) == 1:
        keys = {"dtype", "torch_dtype"} & values.keys() or {"torch_dtype"}
        values |= dict.fromkeys(keys, dtype_name(stored.pop()))
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (target / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Read a model's tokenizer.json and return the id of each token, including added tokens.

    Raises:
        WeightsError: the file cannot be read or is not a tokenizer.
    """
    tokenizer, _ = read_tokenizer(folder / TOKENIZER)
    tokens: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return tokens
