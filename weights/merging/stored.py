"""Open and check a checkpoint for merging or conversion, without loading its tensors.

Tensors are named without `model.`. Unlike `Checkpoint`, this keeps `lm_head.weight`, which the engine does not use: a
merged or converted model must not lose it.
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
    """A model's files, and where its tensors are stored, by name without `model.`, in the order of the files."""

    name: str
    files: ModelFiles
    config: ModelConfig
    tensors: dict[str, TensorInfo]
    keys: dict[str, str]  # the names in the files
    fingerprint: str

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.files.folder


def open_stored(name: str, *, local_files_only: bool = False) -> StoredModel:
    """Find and check a model, named by a folder, a hub id, or a hub id with `@revision`.

    From the hub, it fetches all files that a new model copies, not only those that lastword reads.

    Raises:
        WeightsError: the model is not found, or a file, name, shape or dtype does not match the config.
        ConfigError: a setting is not supported.
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
    """Create the error for a stored tensor with NaN or infinity."""
    where = f"{model}: tensor {tensor}"
    return WeightsError(where, "holds NaN or infinity", expected="finite weights")
