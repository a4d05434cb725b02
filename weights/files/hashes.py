"""Every byte of a model's files hashed, and held to the hub's own hash where its cache states it.

The hub's cache names each file by its hash and links to it, so damage can be found without the network.
Headers alone cannot show a flipped bit in a weight.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from lastword.weights.json_fields import unreadable

_READ_BYTES = 1 << 22
_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileHash:
    """A file of a model, hashed whole; `expected` is the hub's own hash, `whole` None where it is not known."""

    file: str
    bytes: int
    sha256: str
    expected: str | None
    whole: bool | None


def hash_files(folder: Path) -> list[FileHash]:
    """Hash a folder's weights and every JSON file that says how to use them, sorted by name.

    Raises:
        WeightsError: a file cannot be read. Damage is no error here: `whole` is then False.
    """
    paths = [*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*/config.json")]
    return [_hash_file(path, folder) for path in sorted(paths)]


def _hash_file(path: Path, folder: Path) -> FileHash:
    """Hash a file both ways that the hub does: large ones by sha256, small ones by git's sha1 of a blob."""
    sha256 = hashlib.sha256()
    try:
        size = path.stat().st_size
        git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                sha256.update(block)
                git.update(block)
    except OSError as problem:
        raise unreadable(path, problem) from None
    expected = _blob_name(path)
    whole = None if expected is None else expected in (sha256.hexdigest(), git.hexdigest())
    name = path.relative_to(folder).as_posix()
    return FileHash(name, size, sha256.hexdigest(), expected, whole)


def _blob_name(path: Path) -> str | None:
    """Give the hash by which a hub cache names the file that `path` links to."""
    target = path.resolve()
    known = path.is_symlink() and target.parent.name == "blobs" and _HASH.fullmatch(target.name)
    return target.name if known else None
