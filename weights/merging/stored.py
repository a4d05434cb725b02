"""A checkpoint opened to be read once and written anew, merged or converted: checked, nothing loaded.

Knows its tensors by their names without `model.`, and, unlike `Checkpoint`, keeps the `lm_head.weight` that
the engine ignores: what is not computed with must still not be lost.
"""

from dataclasses import dataclass
from pathlib import Path

from lastword.errors import WeightsError
from lastword.weights.checkpoint import Checkpoint
from lastword.weights.config import ModelConfig, read_config
from lastword.weights.files.companions import PATTERNS
from lastword.weights.files.dtypes import WEIGHT_DTYPES
from lastword.weights.files.header import TensorInfo
from lastword.weights.files.shards import read_tensors
from lastword.weights.locate import ModelFiles, locate
from lastword.weights.tensor_names import LM_HEAD, PREFIX


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model's files and the places of its tensors, by name without `model.`, in the files' order."""

    name: str
    files: ModelFiles
    config: ModelConfig
    tensors: dict[str, TensorInfo]
    keys: dict[str, str]  # the names as they are stored
    fingerprint: str

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.files.folder


def open_stored(name: str, *, local_files_only: bool = False) -> StoredModel:
    """Find and check a model: a folder, a hub id, or a hub id with `@revision`.

    From the hub comes all that a new model takes over, not only what lastword reads.

    Raises:
        WeightsError: not found, or a file, name, shape or dtype is not as the config says.
        ConfigError: a setting that lastword does not implement.
    """
    model, revision = name, None
    if "@" in name and not Path(name).exists():
        model, _, revision = name.partition("@")
    files = locate(model, revision=revision, local_files_only=local_files_only, also=PATTERNS)
    config = read_config(files.folder)
    stored = read_tensors(files.folder)
    fingerprint = Checkpoint(files.folder, config, stored=stored).fingerprint
    head = stored.get(LM_HEAD)
    if head is not None and (head.dtype not in WEIGHT_DTYPES or len(head.shape) != 2):
        raise WeightsError(
            f"{head.file}: tensor {LM_HEAD}",
            "wrong dtype or shape",
            got=f"{head.dtype} {list(head.shape)}",
            expected="F32, BF16 or F16 in two dimensions",
        )
    keys = {key.removeprefix(PREFIX): key for key in stored}
    tensors = {plain: stored[key] for plain, key in keys.items()}
    return StoredModel(name, files, config, tensors, keys, fingerprint)


def not_finite(model: str, tensor: str) -> WeightsError:
    """Name a stored tensor from which nothing can be made."""
    where = f"{model}: tensor {tensor}"
    return WeightsError(where, "holds NaN or infinity", expected="finite weights")
