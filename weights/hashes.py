"""Every byte of the weights hashed, and held to the hub's own hash where the cache knows it.

The hub's cache names a large file by its SHA-256 and links to it, so a damaged payload can be found without
the network. Headers alone cannot show a flipped bit in a weight.
"""

import hashlib
import re
from pathlib import Path

from lastword.errors import WeightsError
from lastword.weights.shards import weight_files

_SHA256 = re.compile(r"[0-9a-f]{64}")


def known_hash(file: Path) -> str | None:
    """Give the SHA-256 that the hub's cache states for a file, or None where it states none."""
    target = file.resolve()
    inside = file.is_symlink() and target.parent.name == "blobs"
    return target.name if inside and _SHA256.fullmatch(target.name) else None


def hash_weights(folder: Path) -> dict[str, str]:
    """Hash every weight file of a folder.

    Returns:
        File name → SHA-256 in hex.

    Raises:
        WeightsError: a file cannot be read, or differs from the hash that the hub's cache states for it.
    """
    hashes = {}
    for file in weight_files(Path(folder)):
        try:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise WeightsError(f"{file}: cannot be read; {problem.strerror}") from None
        expected = known_hash(file) or found
        if found != expected:
            raise WeightsError(
                f"{file}: damaged; SHA-256 {found[:12]}…, expected {expected[:12]}…. "
                "Delete it and fetch the model again"
            )
        hashes[file.name] = found
    return hashes
