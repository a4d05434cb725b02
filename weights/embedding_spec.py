"""Read a checkpoint's embedding settings: prompts, normalisation, width, maximum text length, similarity.

These settings are in the files that sentence-transformers and transformers write beside config.json. lastword has an
allow-list for each file, so no setting that changes a vector is ignored. If there is no `modules.json`, defaults are
used, and the other files of sentence-transformers are not read. sentence-transformers does not read these files then
either, but it may use other defaults. generation_config.json and the configs of processors for images and sound are
never read, because nothing in them changes the vector of a text.

How to add another pooling: see `engine/model/qwen3.py`.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lastword.errors import list_some
from lastword.weights.config import ModelConfig
from lastword.weights.files.reading import has_file
from lastword.weights.json_fields import Fields, read_optional_object
from lastword.weights.module_list import MODULES, read_modules
from lastword.weights.tokenizer_settings import TokenizerSettings, read_tokenizer_settings
from lastword.weights.transformer_settings import TransformerSettings, read_transformer_settings

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Other names of cosine. sentence-transformers uses cosine for every name that it does not know, even "dot_score"; here
# unknown names are refused.
_COSINE = ("cos_sim", "pytorch_cos_sim")
_COMMON_KEYS = frozenset(
    "model_type prompts default_prompt_name "
    # Which versions wrote the file, and which may read it.
    "__version__ requirements".split()
)
_KEYS = frozenset({"similarity_fn_name", "truncate_dim"})
# In sentence-transformers every model has these two prompts.
_PROMPTS = {"query": "", "document": ""}
_NOTICE = (
    "{folder}: no modules.json; using the defaults: last-token pooling, normalisation, no prompts and at most "
    "{length} tokens per text"
)


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """A checkpoint's own settings for turning texts into embeddings; `truncate_dim` None means the whole vector."""

    prompts: Mapping[str, str]
    default_prompt_name: str | None
    normalize: bool
    max_length: int
    truncate_dim: int | None
    similarity: str
    tokenizer: TokenizerSettings
    notice: str | None  # a message for the user, if defaults were used


def read_embedding_spec(folder: Path, config: ModelConfig) -> EmbeddingSpec:
    """Read the embedding settings from modules.json and the files beside it; without modules.json, use defaults.

    Raises:
        WeightsError: a file that modules.json names is missing, or a file cannot be read.
        ConfigError: a module, pooling mode, model type or setting is not supported.
    """
    folder = Path(folder)
    if not has_file(folder / MODULES):
        tokenizer = read_tokenizer_settings(folder, Fields({}, str(folder)))
        length = _max_length(None, tokenizer, config)
        notice = _NOTICE.format(folder=folder, length=length)
        return EmbeddingSpec(dict(_PROMPTS), None, True, length, None, "cosine", tokenizer, notice)
    normalize = read_modules(folder, config)
    transformer = read_transformer_settings(folder)
    tokenizer = read_tokenizer_settings(folder, transformer.tokenizer)
    fields = read_settings(folder, "SentenceTransformer", _KEYS)
    prompts = _PROMPTS | read_prompts(fields)
    return EmbeddingSpec(
        prompts=prompts,
        default_prompt_name=read_default_prompt(fields, prompts),
        normalize=normalize,
        max_length=_max_length(transformer, tokenizer, config),
        truncate_dim=_truncate_dim(fields, config),
        similarity=_similarity(fields),
        tokenizer=tokenizer,
        notice=None,
    )


def read_settings(folder: Path, kind: str, known: AbstractSet[str]) -> Fields:
    """Read config_sentence_transformers.json; if there is none, every setting has its default.

    Args:
        folder: the model's folder.
        kind: the `model_type` that the file must state, if it states one.
        known: the keys that a file of this type may have in addition to the keys that every type may have.
    """
    path = folder / "config_sentence_transformers.json"
    fields = Fields(read_optional_object(path) or {}, str(path))
    # Check this first, because the files of other types have keys of their own.
    remedy = "Other model types are not supported. Name another model."
    fields.only("model_type", kind, remedy=remedy)
    fields.refuse_unknown(known | _COMMON_KEYS)
    return fields


def read_prompts(fields: Fields) -> dict[str, str]:
    """Return the prompts of config_sentence_transformers.json; null means an empty prompt."""
    found: dict[str, Any] = fields.object("prompts") or {}
    named = Fields(found, f"{fields.where}: prompts")
    return {name: named.text(name, "") or "" for name in found}


def read_default_prompt(fields: Fields, prompts: Mapping[str, str]) -> str | None:
    """Return the name of the prompt that is used when the caller names none; None if there is no such prompt."""
    default = fields.text("default_prompt_name")
    if default is not None and default not in prompts:
        fields.fail("default_prompt_name", f"one of the prompts: {list_some(prompts)}")
    return default


def _truncate_dim(fields: Fields, config: ModelConfig) -> int | None:
    if fields.values.get("truncate_dim") is None:
        return None
    return fields.integer("truncate_dim", high=config.hidden_size)


def _similarity(fields: Fields) -> str:
    similarity = fields.text("similarity_fn_name") or "cosine"
    if similarity in _COSINE:
        return "cosine"
    if similarity not in SIMILARITIES:
        fields.fail("similarity_fn_name", f"one of {list_some(SIMILARITIES)}")
    return similarity


def _max_length(
    transformer: TransformerSettings | None, tokenizer: TokenizerSettings, config: ModelConfig
) -> int:
    """Return the maximum tokens per text, as sentence-transformers determines it.

    The tokenizer's keyword arguments come first, then `max_seq_length`. If neither is set, the limit is the smaller of
    the tokenizer's and the model's limits.
    """
    if tokenizer.limit is not None:
        return tokenizer.limit
    if transformer is not None and transformer.max_seq_length is not None:
        return transformer.max_seq_length
    own = tokenizer.model_max_length
    limit = config.max_position_embeddings
    return limit if own is None else min(own, limit)
