"""How a checkpoint wants to be used for embedding: prompts, normalisation, longest text, similarity.

Reads the files that sentence-transformers writes, old (`sentence_transformers.models.*`) and new format, by
class name against an allow-list; nothing they name is imported. Without `modules.json` a default is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from lastword.errors import ConfigError, some
from lastword.weights.config import ModelConfig
from lastword.weights.json_fields import Fields, parse_json, read_bytes, read_object, shown

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_CHAINS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_NOTICE = (
    "{folder}: no modules.json; using the last token's state, normalised, with no prompts and at most "
    "{length} tokens per text"
)


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """What the checkpoint's own files say about turning its states into embeddings."""

    prompts: Mapping[str, str]
    default_prompt_name: str | None
    normalize: bool
    max_length: int
    similarity: str
    notice: str | None


def read_embedding_spec(folder: Path, config: ModelConfig) -> EmbeddingSpec:
    """Read modules.json and the files beside it.

    Raises:
        ConfigError: a module, pooling mode, model type or setting that lastword does not implement.
    """
    folder = Path(folder)
    max_length = _max_length(folder, config)
    if not (folder / "modules.json").is_file():
        notice = _NOTICE.format(folder=folder, length=max_length)
        return EmbeddingSpec(MappingProxyType({}), None, True, max_length, "cosine", notice)
    normalize = _read_modules(folder, config)
    prompts, default, similarity = _read_prompts(folder / "config_sentence_transformers.json")
    return EmbeddingSpec(
        MappingProxyType(prompts), default, normalize, max_length, similarity, None
    )


def _read_modules(folder: Path, config: ModelConfig) -> bool:
    """Check the chain of modules; say whether it ends with Normalize."""
    path = folder / "modules.json"
    modules = parse_json(read_bytes(path), str(path), ConfigError)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        got, expected = shown(modules), "a list of modules"
        raise ConfigError(str(path), "wrong content", got=got, expected=expected)
    names, places = [], []
    for number, module in enumerate(modules):
        fields = Fields(module, f"{path}: module {number}")
        names.append((fields.text("type") or fields.fail("type", "a class name")).split(".")[-1])
        places.append(fields.text("path", "") or "")
        if module.get("kwargs"):
            fields.fail("kwargs", "none")
    if names not in _CHAINS:
        raise ConfigError(
            f"{path}: modules",
            "not supported",
            got=shown(names, 120),
            expected="Transformer, Pooling and, optionally, Normalize",
        )
    if places[0] not in ("", "."):
        where = f"{path}: the Transformer's path"
        raise ConfigError(where, "not supported", got=shown(places[0]), expected="none")
    _read_pooling(folder / _inside(places[1], path) / "config.json", config)
    return len(names) == 3


def _inside(place: str, path: Path) -> str:
    """Refuse a module path that leaves the model's folder."""
    parts = PurePosixPath(place).parts
    if not parts or ".." in parts or place.startswith("/") or "\\" in place or ":" in place:
        expected = "a folder inside"
        raise ConfigError(
            f"{path}: module path", "not allowed", got=shown(place), expected=expected
        )
    return place


def _read_pooling(path: Path, config: ModelConfig) -> None:
    values = read_object(path)
    old = [name for name, on in values.items() if name.startswith("pooling_mode_") and on]
    modes = values.get("pooling_mode", [name.removeprefix("pooling_mode_") for name in old])
    modes = [modes] if isinstance(modes, str) else modes
    if modes != ["lasttoken"]:
        where = f"{path}: pooling mode"
        raise ConfigError(where, "not supported", got=shown(modes), expected="lasttoken")
    for key in ("embedding_dimension", "word_embedding_dimension"):
        if values.get(key, config.hidden_size) != config.hidden_size:
            Fields(values, str(path)).fail(key, f"hidden_size, which is {config.hidden_size}")


def _read_prompts(path: Path) -> tuple[dict[str, str], str | None, str]:
    """Give prompts, the default's name and the similarity; an absent file means none and cosine."""
    if not path.is_file():
        return {}, None, "cosine"
    fields = Fields(read_object(path), str(path))
    model_type = fields.text("model_type", "SentenceTransformer")
    if model_type != "SentenceTransformer":
        fields.fail("model_type", '"SentenceTransformer"')
    prompts: dict[str, Any] = fields.object("prompts") or {}
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            Fields(prompts, f"{path}: prompts").fail(name, "a string")
    default = fields.text("default_prompt_name")
    if default is not None and default not in prompts:
        fields.fail("default_prompt_name", f"one of the prompts: {some(prompts) or 'none'}")
    similarity = fields.text("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        fields.fail("similarity_fn_name", f"one of {some(SIMILARITIES)}")
    return prompts, default, similarity


def _max_length(folder: Path, config: ModelConfig) -> int:
    """Take sentence-transformers' own limit, else the smaller of the tokenizer's and the model's."""
    path = folder / "sentence_bert_config.json"
    if path.is_file():
        fields = Fields(read_object(path), str(path))
        _refuse_transformer_settings(fields)
        if fields.values.get("max_seq_length") is not None:
            return fields.integer("max_seq_length", low=2)
    limit = config.max_position_embeddings
    path = folder / "tokenizer_config.json"
    if path.is_file():
        fields = Fields(read_object(path), str(path))
        # An unlimited tokenizer is written as the integer or float nearest to 1e30.
        if fields.values.get("model_max_length") is not None:
            limit = int(min(limit, fields.number("model_max_length", above=1.0)))
    return limit


def _refuse_transformer_settings(fields: Fields) -> None:
    """Refuse settings of the Transformer module under which texts would be treated otherwise."""
    for key in ("do_lower_case", "query_length", "document_length", "query_expansion"):
        if fields.values.get(key):
            fields.fail(key, "none")
    if fields.text("transformer_task", "feature-extraction") != "feature-extraction":
        fields.fail("transformer_task", '"feature-extraction"')
    if fields.values.get("processing_kwargs"):
        fields.fail("processing_kwargs", "none")
