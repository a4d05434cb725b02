"""Open and check a checkpoint for merging or conversion, without loading its tensors.

Tensors are named without `model.`. Unlike `Checkpoint.names`, a `StoredModel` includes `lm_head.weight`: embeddings do
not need this tensor, but a merged or converted model must not lose it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from lastword.errors import ConfigError, WeightsError
from lastword.weights.checkpoint import Checkpoint
from lastword.weights.config import ModelConfig, read_config
from lastword.weights.embedding_spec import read_embedding_spec
from lastword.weights.files.companions import CARD, CONFIG, PATTERNS, companions
from lastword.weights.files.dtypes import WEIGHT_DTYPES
from lastword.weights.files.header import TensorInfo
from lastword.weights.files.shards import INDEX, read_tensors
from lastword.weights.locate import ModelFiles, expand_home, locate
from lastword.weights.tensor_names import LM_HEAD, PREFIX


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model's files and settings, and where each tensor is stored."""

    name: str  # as the user gave it: a folder, a hub id, or a hub id with @revision
    files: ModelFiles
    config: ModelConfig
    tensors: dict[str, TensorInfo]  # by names without `model.`, in the order of the files
    keys: dict[str, str]  # from names without `model.` to names in the files
    fingerprint: str

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.files.folder

    def inputs(self) -> set[Path]:
        """Return the files from which a new model is made."""
        names = (*companions(self.folder), Path(CONFIG), Path(INDEX), Path(CARD))
        return {info.file for info in self.tensors.values()} | {
            self.folder / each for each in names
        }


def open_stored(name: str, *, local_files_only: bool = False) -> StoredModel:
    """Find and check a model that is named by a folder, a hub id, or a hub id with `@revision`.

    From the hub, all files that are copied to a new model are fetched, not only the files that lastword reads.

    Raises:
        WeightsError: the model is not found or damaged, does not match its config, or has an unsupported dtype.
        ConfigError: a setting is not supported.
    """
    files = _locate(name, local_files_only=local_files_only)
    config = read_config(files.folder)
    # Refuse models that lastword does not support, such as one with a module whose weights would be lost.
    read_embedding_spec(files.folder, config)
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


def _locate(name: str, *, local_files_only: bool) -> ModelFiles:
    model, revision = name, None
    if "@" in name and not os.path.lexists(expand_home(name)):
        model, _, revision = name.partition("@")
        if not model or not revision:
            raise WeightsError(name, "no such folder, and not a valid hub id (owner/name@revision)")
    try:
        return locate(model, revision=revision, local_files_only=local_files_only, also=PATTERNS)
    except ConfigError as problem:
        if problem.where == "revision":
            problem.where = name
        raise


def not_finite_error(model: str, tensor: str) -> WeightsError:
    """Create the error for a stored tensor with NaN or infinity."""
    where = f"{model}: tensor {tensor}"
    return WeightsError(where, "contains NaN or infinity", expected="finite weights")
