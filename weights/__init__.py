"""Where weights come from: a hub id or a folder in, configuration and checked tensors out.

`locate` finds the files, `read_config` and `read_embedding_spec` say what they describe, and `Checkpoint`
gives the tensors. Nothing here knows how the forward pass works; the engine reads these types only.
"""

from lastword.weights.checkpoint import Checkpoint, LayerWeights
from lastword.weights.config import ModelConfig, read_config
from lastword.weights.embedding_spec import EmbeddingSpec, read_embedding_spec
from lastword.weights.files.hashes import FileHash, hash_files
from lastword.weights.files.writer import write_safetensors
from lastword.weights.locate import BUILTIN, BUILTIN_NOTICE, ModelFiles, expanded, locate
from lastword.weights.rope import RopeConfig

__all__ = [
    "BUILTIN",
    "BUILTIN_NOTICE",
    "Checkpoint",
    "EmbeddingSpec",
    "FileHash",
    "LayerWeights",
    "ModelConfig",
    "ModelFiles",
    "RopeConfig",
    "expanded",
    "hash_files",
    "locate",
    "read_config",
    "read_embedding_spec",
    "write_safetensors",
]
