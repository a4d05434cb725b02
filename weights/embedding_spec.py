"""Read a checkpoint's embedding settings: prompts, normalisation, maximum text length, similarity.

These are the files that sentence-transformers writes, in the old (`sentence_transformers.models.*`) or new format.
Class names are checked against an allow-list and never imported. Without `modules.json` defaults are used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from lastword.errors import ConfigError, list_some
from lastword.weights.config import ModelConfig
from lastword.weights.json_fields import Fields, parse_json, read_bytes, read_object, show_value

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_CHAINS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_NOTICE = (
    "{folder}: no modules.json; using the defaults: last-token pooling, normalisation, no prompts and at most "
    "{length} tokens per text"
)


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """The checkpoint's own settings for turning token states into embeddings."""

    prompts: Mapping[str, str]
    default_prompt_name: str | None
    normalize: bool
    max_length: int
    similarity: str
    notice: str | None


def read_embedding_spec(folder: Path, config: ModelConfig) -> EmbeddingSpec:
    """Read modules.json and the other files that sentence-transformers writes.

    Raises:
        WeightsError: a file that modules.json names is missing or cannot be read.
        ConfigError: a module, pooling mode, model type or setting is not supported.
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
    """Check the list of modules; return whether it ends with Normalize."""
    path = folder / "modules.json"
    modules = parse_json(read_bytes(path), str(path), ConfigError)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        got, expected = show_value(modules), "a list of modules"
        raise ConfigError(str(path), "wrong content", got=got, expected=expected)
    names, places = [], []
    for number, module in enumerate(modules):
        fields = Fields(module, f"{path}: module {number}")
        names.append((fields.text("type") or fields.fail("type", "a class name")).split(".")[-1])
        places.append(fields.text("path", "") or "")
        if module.get("kwargs"):
            fields.fail("kwargs", "none", "Module arguments are not supported. Name another model.")
    if names not in _CHAINS:
        raise ConfigError(
            f"{path}: modules",
            "not supported",
            got=show_value(names, 120),
            expected="Transformer, Pooling and, optionally, Normalize",
            remedy="Other modules are not supported. Name another model.",
        )
    if places[0] not in ("", "."):
        raise ConfigError(
            f"{path}: the Transformer's path",
            "not supported",
            got=show_value(places[0]),
            expected="none",
            remedy="Move the Transformer's files to the model's folder.",
        )
    _read_pooling(folder / _check_inside(places[1], path) / "config.json", config)
    return len(names) == 3


def _check_inside(place: str, path: Path) -> str:
    """Refuse a module path outside the model's folder."""
    parts = PurePosixPath(place).parts
    if not parts or ".." in parts or place.startswith("/") or "\\" in place or ":" in place:
        expected = "a folder inside the model's"
        raise ConfigError(
            f"{path}: module path", "not allowed", got=show_value(place), expected=expected
        )
    return place


def _read_pooling(path: Path, config: ModelConfig) -> None:
    values = read_object(path)
    old = [name for name, on in values.items() if name.startswith("pooling_mode_") and on]
    modes = values.get("pooling_mode", [name.removeprefix("pooling_mode_") for name in old])
    modes = [modes] if isinstance(modes, str) else modes
    if modes != ["lasttoken"]:
        raise ConfigError(
            f"{path}: pooling mode",
            "not supported",
            got=show_value(modes),
            expected="lasttoken",
            remedy="Only last-token pooling is supported. Name another model.",
        )
    for key in ("embedding_dimension", "word_embedding_dimension"):
        if values.get(key, config.hidden_size) != config.hidden_size:
            Fields(values, str(path)).fail(key, f"hidden_size, which is {config.hidden_size}")


def _read_prompts(path: Path) -> tuple[dict[str, str], str | None, str]:
    """Return the prompts, the default prompt's name and the similarity; without the file none, None and cosine."""
    if not path.is_file():
        return {}, None, "cosine"
    fields = Fields(read_object(path), str(path))
    model_type = fields.text("model_type", "SentenceTransformer")
    if model_type != "SentenceTransformer":
        remedy = "Other model types are not supported. Name another model."
        fields.fail("model_type", '"SentenceTransformer"', remedy)
    prompts: dict[str, Any] = fields.object("prompts") or {}
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            Fields(prompts, f"{path}: prompts").fail(name, "a string")
    default = fields.text("default_prompt_name")
    if default is not None and default not in prompts:
        fields.fail("default_prompt_name", f"one of the prompts: {list_some(prompts) or 'none'}")
    similarity = fields.text("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        fields.fail("similarity_fn_name", f"one of {list_some(SIMILARITIES)}")
    return prompts, default, similarity


def _max_length(folder: Path, config: ModelConfig) -> int:
    """Return the limit set for sentence-transformers, else the smaller of the tokenizer's and the model's limits."""
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
        # A tokenizer without a limit has the integer or float nearest to 1e30 here.
        if fields.values.get("model_max_length") is not None:
            limit = int(min(limit, fields.number("model_max_length", above=1.0)))
    return limit


def _refuse_transformer_settings(fields: Fields) -> None:
    """Refuse settings of the Transformer module under which texts would be processed differently."""
    remedy = "This setting is not supported. Name another model."
    for key in ("do_lower_case", "query_length", "document_length", "query_expansion"):
        if fields.values.get(key):
            fields.fail(key, "none", remedy)
    if fields.text("transformer_task", "feature-extraction") != "feature-extraction":
        fields.fail("transformer_task", '"feature-extraction"', remedy)
    if fields.values.get("processing_kwargs"):
        fields.fail("processing_kwargs", "none", remedy)
