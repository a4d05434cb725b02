"""Read modules.json, which lists the modules that turn a text into its vector or score, and the modules' configs.

Of sentence-transformers' modules only Transformer, last-token Pooling, Normalize and, for rerankers, LogitScore are
implemented. Modules are recognised by their full class paths, and no code that a checkpoint names is imported.
`engine/model/qwen3.py` says how to add another pooling.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from lastword.errors import ConfigError
from lastword.weights.config import ModelConfig
from lastword.weights.files.reading import has_file, read_bytes
from lastword.weights.json_fields import (
    Fields,
    parse_json,
    read_object,
    read_optional_object,
    show_value,
)

MODULES = "modules.json"
# Every class path that sentence-transformers has written for a module, or by which version 6 finds the module.
CLASSES = {
    "Transformer": (
        "sentence_transformers.models.Transformer",  # written by versions up to 5.3
        "sentence_transformers.base.modules.transformer.Transformer",  # by 5.4 and later
        # Aliases, for files written by hand.
        "sentence_transformers.models.Transformer.Transformer",
        "sentence_transformers.base.modules.Transformer",
        "sentence_transformers.sentence_transformer.modules.Transformer",
    ),
    "Pooling": (
        "sentence_transformers.models.Pooling",  # up to 5.3
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",  # 5.4 and later
        "sentence_transformers.models.Pooling.Pooling",
        "sentence_transformers.sentence_transformer.modules.Pooling",
    ),
    "Normalize": (
        "sentence_transformers.models.Normalize",  # up to 5.3
        "sentence_transformers.sentence_transformer.modules.normalize.Normalize",  # 5.4 to 5.6
        "sentence_transformers.base.modules.normalize.Normalize",  # 6.0 and later
        "sentence_transformers.models.Normalize.Normalize",
        "sentence_transformers.sentence_transformer.modules.Normalize",
        "sentence_transformers.base.modules.Normalize",
    ),
    "LogitScore": (
        "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",  # 5.4 and later
        "sentence_transformers.cross_encoder.modules.LogitScore",
    ),
}
_NAMES = {path: name for name, paths in CLASSES.items() for path in paths}
_CHAINS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_RERANKERS = (["Transformer"], ["Transformer", "LogitScore"])
_MODULE_KEYS = frozenset({"idx", "name", "path", "type", "kwargs"})
# Up to version 5.3 of sentence-transformers, each pooling mode had a key of its own.
_OLD_MODES = tuple(
    f"pooling_mode_{mode}"
    for mode in (
        "cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken",
    )
)  # fmt: skip
_SIZES = ("embedding_dimension", "word_embedding_dimension")
_POOLING_KEYS = frozenset({"pooling_mode", "include_prompt", *_OLD_MODES, *_SIZES})


def read_modules(folder: Path, config: ModelConfig) -> bool:
    """Check an embedding model's modules and their configs; return whether the last module normalises the vectors.

    Raises:
        WeightsError: a file is missing or cannot be read.
        ConfigError: a module or one of its settings is not supported.
    """
    names, places = _read_chain(folder / MODULES)
    if names not in _CHAINS:
        remedy = (
            "Other modules are not supported, and no code of a model is run. Name another model."
        )
        if names in _RERANKERS:
            remedy = "If it is a reranker, use lastword rerank, or lastword.Reranker in Python."
        expected = "Transformer, Pooling and, optionally, Normalize of sentence-transformers"
        raise _wrong_modules(folder, names, expected, remedy)
    pooling, *normalize = places[1:]
    _read_pooling(pooling / "config.json", config)
    for each in normalize:
        _read_normalize(each / "config.json")
    return bool(normalize)


def read_reranker_modules(folder: Path) -> Path | None:
    """Check a reranker's list of modules; return the folder of the LogitScore module, or None if there is none.

    Raises:
        WeightsError: the file cannot be read.
        ConfigError: a module is not supported.
    """
    names, places = _read_chain(folder / MODULES)
    if names not in _RERANKERS:
        remedy = (
            "Other modules are not supported, and no code of a model is run. Name another model."
        )
        if names in _CHAINS:
            remedy = "This is an embedding model. Name a reranker."
        expected = "Transformer and, for a causal model, LogitScore of sentence-transformers"
        raise _wrong_modules(folder, names, expected, remedy)
    return places[1] if len(places) > 1 else None


def _read_chain(path: Path) -> tuple[list[str], list[Path]]:
    """Return the modules' classes (a short name if the class is known), and the modules' folders.

    If a class is unknown or the first module is not a Transformer, the list of folders is empty; the caller refuses
    such a list of modules.
    """
    modules = _read_list(path)
    names, places = [], []
    for module in modules:
        class_path = module.text("type") or module.fail("type", "a class name")
        names.append(_NAMES.get(class_path, class_path))
        places.append(module.text("path", "") or "")
        module.refuse_unknown(_MODULE_KEYS)
        if module.values.get("kwargs"):
            remedy = "Module arguments are not supported. Name another model."
            module.fail("kwargs", "none", remedy)
    if not all(name in CLASSES for name in names) or names[:1] != ["Transformer"]:
        return names, []
    _refuse_same_names(modules)
    _refuse_own_folder(path, places[0])
    inside = [path.parent / _check_inside(place, path) for place in places[1:]]
    return names, [path.parent, *inside]


def _wrong_modules(folder: Path, names: list[str], expected: str, remedy: str) -> ConfigError:
    where, got = f"{folder / MODULES}: modules", show_value(names, 120)
    return ConfigError(where, "not supported", got=got, expected=expected, remedy=remedy)


def refuse_transformer_folder(folder: Path) -> None:
    """Refuse a model whose Transformer module has a subfolder of its own, before its files are reported as missing.

    Raises:
        WeightsError: modules.json cannot be read.
        ConfigError: modules.json names such a folder, or is not a list of modules.
    """
    path = folder / MODULES
    if has_file(path):
        for module in _read_list(path)[:1]:
            _refuse_own_folder(path, module.text("path", "") or "")


def _refuse_own_folder(path: Path, place: str) -> None:
    if place not in ("", "."):
        raise ConfigError(
            f"{path}: the Transformer's path",
            "a folder of its own is not supported",
            got=show_value(place),
            expected='""',
            remedy='Move the files of that folder to the model\'s folder and set this path to "". '
            "Opening the model with sentence-transformers and saving it does the same.",
        )


def _read_list(path: Path) -> list[Fields]:
    modules = parse_json(read_bytes(path), str(path), ConfigError)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        got, expected = show_value(modules), "a list of modules"
        raise ConfigError(str(path), "wrong content", got=got, expected=expected)
    return [Fields(module, f"{path}: module {number}") for number, module in enumerate(modules)]


def _refuse_same_names(modules: list[Fields]) -> None:
    """Refuse modules with equal names: sentence-transformers would use only the last of them."""
    seen: set[str | None] = set()
    for module in modules:
        name = module.text("name")
        if name in seen:
            module.fail("name", "a name that no other module has")
        seen.add(name)


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
    fields = Fields(read_object(path), str(path))
    fields.refuse_unknown(_POOLING_KEYS)
    old = [name for name in _OLD_MODES if fields.boolean(name, default=False)]
    modes: Any = fields.values.get(
        "pooling_mode", [name.removeprefix("pooling_mode_") for name in old]
    )
    modes = [modes] if isinstance(modes, str) else modes
    if modes != ["lasttoken"]:
        raise ConfigError(
            f"{path}: pooling mode",
            "not supported",
            got=show_value(modes),
            expected="lasttoken",
            remedy="Only last-token pooling is supported. Name another model.",
        )
    # Without the prompt's tokens, a text that is only its prompt would have no token to pool.
    same = "Set it to true: last-token pooling takes the same token either way."
    fields.only("include_prompt", True, remedy=same)
    for key in _SIZES:
        if fields.values.get(key, config.hidden_size) != config.hidden_size:
            fields.fail(key, f"hidden_size, which is {config.hidden_size}")


def _read_normalize(path: Path) -> None:
    """Check that a Normalize module acts on the embedding; before sentence-transformers 6 they had no config."""
    fields = Fields(read_optional_object(path) or {}, str(path))
    fields.refuse_unknown({"module_input_name", "module_output_name"})
    fields.only("module_input_name", "sentence_embedding")
    fields.only("module_output_name", "sentence_embedding", None)
