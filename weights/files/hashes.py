"""Hash a model's files completely, and compare the hashes with the hub's if the model is in the hub's cache.

The cache stores each file under a name that is the file's hash, so damage can be found without the network. Checking
the headers alone cannot find a flipped bit in a weight.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lastword.weights.files.reading import missing_file_error, open_regular, read_error

_READ_BYTES = 1 << 22
_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileHash:
    """The hash of one file.

    `sha256` was computed from the file's content. `expected` is the hash that the hub states, sha256 or git's sha1;
    None if it is unknown. `whole` says whether the content has the hash `expected`; None if `expected` is None.
    """

    file: str
    bytes: int
    sha256: str
    expected: str | None
    whole: bool | None


def hash_files(folder: Path) -> list[FileHash]:
    """Hash a model folder's weights and JSON files, and return the hashes sorted by file name.

    Raises:
        WeightsError: a file cannot be read. A damaged file is not an error: its `whole` is False.
    """
    paths = [*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*/config.json")]
    return [hash_file(path, folder) for path in sorted(paths)]


def hash_file(path: Path, folder: Path) -> FileHash:
    """Hash a file in both ways that the hub uses: sha256 for large files, git's sha1 of a blob for small ones.

    Args:
        path: the file.
        folder: the model's folder, to which the file's name is relative.

    Raises:
        WeightsError: the file cannot be read.
    """
    sha256 = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
            while block := stream.read(_READ_BYTES):
                sha256.update(block)
                git.update(block)
    except FileNotFoundError:
        raise missing_file_error(path) from None
    except OSError as problem:
        raise read_error(path, problem) from None
    expected = _blob_name(path)
    whole = None if expected is None else expected in (sha256.hexdigest(), git.hexdigest())
    name = path.relative_to(folder).as_posix()
    return FileHash(name, size, sha256.hexdigest(), expected, whole)


def _blob_name(path: Path) -> str | None:
    """Return the hub's hash of a file, which is the name of the blob that `path` links to; None for other files."""
    target = path.resolve()
    known = path.is_symlink() and target.parent.name == "blobs" and _HASH.fullmatch(target.name)
    return target.name if known else None
