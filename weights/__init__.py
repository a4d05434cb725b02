"""Find and check a model's files: from a hub id or folder to its configuration and tensors.

`locate` finds the files, `read_config` and `read_embedding_spec` read their settings, and `Checkpoint` reads the
tensors. This package contains nothing about the forward pass. Modules that need torch are imported at their first use,
so the command line can parse JSON without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lastword.weights.config import ModelConfig, read_config
from lastword.weights.embedding_spec import EmbeddingSpec, read_embedding_spec
from lastword.weights.files.dtypes import dtype_name, tensor_bytes
from lastword.weights.files.hashes import FileHash, hash_files
from lastword.weights.files.header import growing_header, safetensors_header
from lastword.weights.json_fields import parse_json, parse_object
from lastword.weights.locate import BUILTIN, BUILTIN_NOTICE, ModelFiles, expand_home, locate
from lastword.weights.rope import RopeConfig
from lastword.weights.tensor_names import loaded_bytes
from lastword.weights.tokenizer_settings import check_pipeline, check_tokens

if TYPE_CHECKING:
    from lastword.weights.checkpoint import Checkpoint, LayerWeights, WeightsSource
    from lastword.weights.files.writer import write_safetensors
    from lastword.weights.reranker_spec import (
        CHAT_TEMPLATE,
        RerankerSpec,
        ScoreTokens,
        read_chat_template,
        read_reranker_spec,
        read_score_row,
    )

__all__ = [
    "BUILTIN",
    "BUILTIN_NOTICE",
    "CHAT_TEMPLATE",
    "Checkpoint",
    "EmbeddingSpec",
    "FileHash",
    "LayerWeights",
    "ModelConfig",
    "ModelFiles",
    "RerankerSpec",
    "RopeConfig",
    "ScoreTokens",
    "WeightsSource",
    "check_pipeline",
    "check_tokens",
    "dtype_name",
    "expand_home",
    "growing_header",
    "hash_files",
    "loaded_bytes",
    "locate",
    "parse_json",
    "parse_object",
    "read_chat_template",
    "read_config",
    "read_embedding_spec",
    "read_reranker_spec",
    "read_score_row",
    "safetensors_header",
    "tensor_bytes",
    "write_safetensors",
]

_WITH_TORCH = {
    "Checkpoint": "checkpoint",
    "LayerWeights": "checkpoint",
    "WeightsSource": "checkpoint",
    "write_safetensors": "files.writer",
    "CHAT_TEMPLATE": "reranker_spec",
    "RerankerSpec": "reranker_spec",
    "ScoreTokens": "reranker_spec",
    "read_chat_template": "reranker_spec",
    "read_reranker_spec": "reranker_spec",
    "read_score_row": "reranker_spec",
}


def __getattr__(name: str) -> object:
    """Import a name whose module needs torch, when the name is first used."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    globals()[name] = found
    return found
