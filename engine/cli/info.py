"""`lastword info`: what a model is, how it would run here, and with `--full` whether it is whole.

`--full` comes before the model is opened: a damaged one may not open. It asks `lastword.weights`
where the files are.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lastword.cli import console, options
from lastword.errors import some

if TYPE_CHECKING:
    from lastword.embedder import Embedder

BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class FileHash:
    """A file of the model, hashed whole. `expected` is the hub's own hash where it is known."""

    file: str
    bytes: int
    sha256: str
    expected: str | None
    whole: bool | None


def run(args: argparse.Namespace) -> int:
    """Run the command; see `main.py` for its options."""
    options.choose_model(args)
    hashes = _hashes(_folder(args)) if args.full else []
    damaged = [each.file for each in hashes if each.whole is False]
    facts: dict[str, object] = {"damaged": damaged}
    if not damaged:
        facts = describe(options.open_model(args))
    if args.full:
        facts["files"] = [asdict(each) for each in hashes]
    if args.json:
        console.print_lines([json.dumps(facts, ensure_ascii=False, indent=2)])
    else:
        console.print_lines(list(_table(facts)))
    if damaged:
        console.say(
            f"{some(damaged)}: does not match the hash that the hub gave; download it again"
        )
    return 1 if damaged else 0


def describe(embedder: "Embedder") -> dict[str, object]:
    """Gather what there is to know about an open model, in the order shown."""
    found, checkpoint = embedder.files, embedder.checkpoint
    prompt = embedder.resolve_prompt(None, None, None)
    return {
        "model": embedder.name,
        "folder": str(found.folder),
        "revision": found.revision,
        "parameters": checkpoint.num_parameters,
        "bytes": checkpoint.num_bytes,
        "stored": ", ".join(checkpoint.dtypes),
        "device": ", ".join(map(str, embedder.devices)),
        "dtype": str(embedder.dtype).removeprefix("torch."),
        "quantize": embedder.quantize,
        "dim": embedder.dim,
        "max_length": embedder.max_length,
        "prompts": dict(embedder.prompts),
        "default_prompt": embedder.default_prompt_name,
        "space": embedder.space_fingerprint(),
        "run": embedder.run_fingerprint(prompt, "float32", None, None),
        "weights": checkpoint.fingerprint(),
        "notices": list(embedder.notices),
        "config": asdict(embedder.config),
    }


def _folder(args: argparse.Namespace) -> Path:
    from lastword.weights import locate

    offline = args.local_files_only
    return locate(args.model, revision=args.revision, local_files_only=offline).folder


def _hashes(folder: Path) -> list[FileHash]:
    """Hash the weights and every JSON file that says how to use them."""
    paths = [*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*/config.json")]
    return [_hash_file(path, folder) for path in sorted(paths)]


def _hash_file(path: Path, folder: Path) -> FileHash:
    """Hash a file; in a hub cache the name of the blob it links to is its hash.

    The hub names large files by sha256 and small ones by git's sha1 of a blob.
    """
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            sha256.update(block)
            git.update(block)
    expected = _blob_name(path)
    whole = None if expected is None else expected in (sha256.hexdigest(), git.hexdigest())
    name = path.relative_to(folder).as_posix()
    return FileHash(name, size, sha256.hexdigest(), expected, whole)


def _blob_name(path: Path) -> str | None:
    target = path.resolve()
    known = target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", target.name)
    return target.name if known and path.is_symlink() else None


def _table(facts: Mapping[str, object]) -> Iterator[str]:
    """Lay the facts out a line each, groups under their name."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{name}:"
            yield from (f"  {key:<26} {_shown(each)}" for key, each in value.items())
        elif name == "files" and isinstance(value, list):
            yield "files:"
            yield from (_file_line(each) for each in value)
        else:
            yield f"{name:<28} {_shown(value)}"


def _file_line(each: Mapping[str, object]) -> str:
    verdict = {True: "as the hub has it", False: "DAMAGED", None: "no known hash to compare"}
    whole = each["whole"]
    said = verdict[whole if isinstance(whole, bool) else None]
    return f"  {each['file']}  {each['bytes']:,} bytes  sha256 {each['sha256']}  {said}"


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if value == "" else console.printable(value)
    return json.dumps(value, ensure_ascii=False)
