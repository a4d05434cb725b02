"""Read a merge recipe in mergekit's YAML strictly; keys that are not supported are refused by name.

Only merges of whole models, listed under `models:`, are supported. Each listed model may have the keys model and
parameters.weight. The recipe may also have merge_method, base_model, dtype, out_dtype, tokenizer_source, and the
method's parameters. `merge.py` opens the models.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import torch

from lastword.errors import ConfigError, list_some, require_extra
from lastword.weights.files.dtypes import WEIGHT_DTYPES, dtype_name, torch_dtype
from lastword.weights.files.reading import read_bytes
from lastword.weights.json_fields import Fields, show_value
from lastword.weights.locate import expand_home

_MAX_BYTES = (
    64 * 1024
)  # even the slowest YAML of this size takes only seconds; a hundred models take 10 KB
MAX_MODELS = 256  # each model takes an open file, and memory for its part of each block
_MAX_NAME = 1000  # characters
_MAX_NUMBER = 1e100  # sums of squares of larger numbers overflow
_EXPECTED = f"a finite number, at most {_MAX_NUMBER:g} in size"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_DTYPES: Final = {dtype_name(dtype): dtype for dtype in map(torch_dtype, WEIGHT_DTYPES)}
_KEYS = frozenset(
    "models merge_method base_model dtype out_dtype parameters tokenizer_source".split()
)
_STYLES = frozenset("slices modules tokenizer chat_template".split())
# The beginnings of messages of `yaml`, each with its meaning in plain words; other messages are shown unchanged.
_YAML_PROBLEMS = {
    "but found another document": "more than one document",
    "could not determine a constructor": "a tag that is not supported",
    "could not find expected ':'": "a key without a colon",
    "expected ',' or": "a comma or a closing bracket is missing",
    "expected <block end>": "wrong indentation, or something follows a closing quote",
    "expected the node content": "a value is missing",
    "found character": "a character that cannot begin a value, such as a tab or @: quote it",
    "found unexpected end of stream": "a quote is not closed",
    "found unhashable key": "a list or mapping as a key",
    "found unknown escape character": "a backslash before a character that needs none",
    "mapping values are not allowed": "a second colon in the line, or wrong indentation: quote the value",
    "unacceptable character": "a control character",
}
# Each method's parameters except `weight`, with their defaults; None means that there is no default.
_PARAMETERS: Final[dict[str, dict[str, bool | float | None]]] = {
    "linear": {"normalize": True},
    "multislerp": {"normalize_weights": True},
    "slerp": {"t": None},
    "task_arithmetic": {"normalize": False, "lambda": 1.0},
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked recipe. With slerp, `models` has the model at t = 0 and the model at t = 1, and `weights` is empty."""

    method: str
    models: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None  # the model that is subtracted from each model first and added at the end
    donor: str  # the model whose configuration, tokenizer and other files are copied
    dtype: torch.dtype | None  # the result's dtype; None keeps the stored dtypes
    parameters: Mapping[str, bool | float]
    tokenizer: str | None  # the model whose tokenizer is wanted; it must equal the donor's
    text: str

    @property
    def normalize(self) -> bool:
        """Whether the weights are divided by their sum; mergekit's methods have two names for this parameter."""
        own = self.parameters
        return bool(own.get("normalize") or own.get("normalize_weights"))


def read_recipe(path: Path) -> Recipe:
    """Read and check a merge recipe, which is a YAML file.

    Raises:
        WeightsError: the file cannot be read.
        ConfigError: the file is not YAML, or something in it is not supported.
        MissingPackageError: PyYAML cannot be imported.
    """
    data = read_bytes(path, remedy="Name the recipe, a YAML file.", limit=_MAX_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ConfigError(str(path), f"not UTF-8 at byte {problem.start}") from None
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str) -> Recipe:
    """Parse and check the text of a recipe.

    Args:
        text: the YAML.
        where: the beginning of each error message.

    Raises:
        ConfigError: the text is not YAML, or something in it is not supported.
        MissingPackageError: PyYAML cannot be imported.
    """
    fields = _fields(_load(text, where), where)
    _refuse_others(fields)
    method = fields.text("merge_method") or fields.fail("merge_method", "a method's name")
    if method not in _PARAMETERS:
        fields.fail(
            "merge_method", f"one of {list_some(_PARAMETERS)}", "Other methods are not supported."
        )
    base = _model(fields, "base_model") if fields.values.get("base_model") is not None else None
    members = _members(fields)
    shared = _parameters(fields)
    own, global_weight = _own_parameters(shared, method)
    models, weights = _read_weights(members, global_weight, method, base, where)
    if method == "linear":
        donor, base = base or models[0], None
    elif method == "slerp":
        models, donor, base = (base or "", *models), base or "", None
    else:
        donor = base or models[0]
    tokenizer = _tokenizer(fields, {*models, donor})
    return Recipe(method, models, weights, base, donor, _dtype(fields), own, tokenizer, text)


def _load(text: str, where: str) -> Any:
    with require_extra("PyYAML", "merge", "merge"):
        import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
        """A safe YAML loader that also refuses duplicate keys, aliases and tags.

        A few nested aliases can expand to gigabytes. A tag calls a constructor, which may raise any kind of exception.
        """

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            alias = isinstance(event, yaml.AliasEvent)
            named = event.anchor if alias else event.tag
            if named is not None:
                raise ConfigError(
                    f"{where}:{event.start_mark.line + 1}",
                    "aliases are not supported" if alias else "tags are not supported",
                    got=show_value(named),
                    expected="a plain value",
                    remedy="Write the value itself.",
                )
            return super().compose_node(parent, index)

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        pairs = loader.construct_pairs(node, deep=True)
        seen = set()
        for key, _ in pairs:
            if isinstance(key, str) and key in seen:
                place = f"{where}:{node.start_mark.line + 1}"
                raise ConfigError(place, f"key {show_value(key)} occurs twice", expected="once")
            seen.add(key)
        return dict(pairs)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506  a subclass of SafeLoader
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        reason = getattr(problem, "problem", None) or str(problem).splitlines()[0]
        known = (words for start, words in _YAML_PROBLEMS.items() if reason.startswith(start))
        raise ConfigError(place, f"not valid YAML ({next(known, reason)})") from None
    except RecursionError:
        raise ConfigError(where, "not valid YAML (nested too deeply)") from None
    except (TypeError, ValueError, OverflowError) as problem:
        if isinstance(problem, ConfigError):
            raise
        key = str(problem).startswith("unhashable")
        reason = "a list or mapping as a key" if key else "a number or date that cannot be read"
        raise ConfigError(where, f"not valid YAML ({reason})") from None


def _fields(value: Any, where: str) -> Fields:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(
            where, "wrong content", got=show_value(value), expected="names with values"
        )
    return Fields(value, where)


def _refuse_others(fields: Fields) -> None:
    for key in sorted(_STYLES & fields.values.keys()):
        if fields.values[key] is not None:
            raise ConfigError(
                f"{fields.where}: {key}",
                "not supported",
                expected="a merge of whole models, listed under models:",
                remedy="Remove it.",
            )
    _refuse_unknown(fields, _KEYS | _STYLES, "keys")


def _refuse_unknown(fields: Fields, known: frozenset[str], what: str) -> None:
    if unknown := fields.values.keys() - known:
        raise ConfigError(
            fields.where,
            f"{what} that are not supported: {list_some(unknown)}",
            expected=list_some(known - _STYLES, 9),
            remedy="Remove them.",
        )


def _members(fields: Fields) -> list[tuple[str, Fields]]:
    """Return the name of each model listed under `models:`, and the model's parameters."""
    listed = fields.values.get("models")
    if not isinstance(listed, list) or not listed:
        fields.fail("models", "a list of models")
    if len(listed) > MAX_MODELS:
        where, got = f"{fields.where}: models", str(len(listed))
        raise ConfigError(where, "too many", got=got, expected=f"at most {MAX_MODELS}")
    members = []
    for number, entry in enumerate(listed, 1):
        where = f"{fields.where}: models: entry {number}"
        each = _fields(entry, where)
        _refuse_unknown(each, frozenset(("model", "parameters")), "keys")
        parameters = _parameters(each)
        _refuse_unknown(parameters, frozenset(("weight",)), "parameters of a model")
        members.append((_model(each, "model"), parameters))
    return members


def _parameters(fields: Fields) -> Fields:
    value = fields.values.get("parameters")
    return _fields({} if value is None else value, f"{fields.where}: parameters")


def _model(fields: Fields, key: str) -> str:
    name = fields.values.get(key)
    if (wrong := wrong_name(name)) is not None:
        fields.fail(key, *wrong)
    return str(name)


def wrong_name(name: object) -> tuple[str, str | None] | None:
    """Check whether a model's name can be used in a recipe.

    Returns:
        None if the name can be used; otherwise what was expected, and a remedy or None.
    """
    if not isinstance(name, str) or not name.strip():
        return "a folder or a hub id", None
    if len(name) > _MAX_NAME or not name.isprintable():
        return f"a folder or a hub id in one line of at most {_MAX_NAME} characters", None
    if os.path.lexists(expand_home(name)):
        return None
    if "+" in name:
        return "one model", "Adapters are not supported. Merge the adapter into its model first."
    if "@" in (name[0], name[-1]):
        return "a folder or a hub id (owner/name@revision)", None
    return None


def _own_parameters(shared: Fields, method: str) -> tuple[dict[str, bool | float], float | None]:
    """Read the method's own parameters, and the default weight of the models (None if it is not given)."""
    defaults = _PARAMETERS[method]
    if method == "multislerp" and "normalize" in shared.values:
        shared.fail("normalize", "no such parameter", "Use normalize_weights with multislerp.")
    weight = frozenset() if method == "slerp" else frozenset(("weight",))
    _refuse_unknown(shared, frozenset(defaults) | weight, f"parameters of {method}")
    own: dict[str, bool | float] = {}
    for key, default in defaults.items():
        if isinstance(default, bool):
            own[key] = shared.boolean(key, default=default)
        else:
            own[key] = _number(shared, key, default)
    if method == "slerp" and not 0.0 <= own["t"] <= 1.0:
        shared.fail("t", "a number from 0 to 1")
    return own, _number(shared, "weight", None) if "weight" in shared.values else None


def _number(fields: Fields, key: str, default: float | None) -> float:
    """Read a number; a string such as "1e-3" is accepted too, because YAML reads 1e-3 as a string."""
    value = fields.values.get(key, default)
    if isinstance(value, list | dict):
        _refuse_gradient(fields, key, value)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        fields.fail(key, _EXPECTED)
    if not abs(value) <= _MAX_NUMBER:
        fields.fail(key, _EXPECTED)
    return float(value)


def _refuse_gradient(fields: Fields, key: str, value: list[Any] | dict[str, Any]) -> NoReturn:
    entries = value if isinstance(value, list) else [value]
    kind = "filters" if any(isinstance(entry, dict) for entry in entries) else "gradients"
    fields.fail(key, "one number", f"{kind.capitalize()} are not supported. Write one number.")


def _read_weights(
    members: list[tuple[str, Fields]],
    global_weight: float | None,
    method: str,
    base: str | None,
    where: str,
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the names and weights of the models to merge; the base is left out unless the method is linear."""
    if base is None and method in ("slerp", "task_arithmetic"):
        remedy = f"{method} needs a base_model. Add one."
        raise ConfigError(f"{where}: base_model", "missing", remedy=remedy)
    if method == "linear" and base is not None and base not in [name for name, _ in members]:
        remedy = "List it under models with a weight, or remove it."
        raise ConfigError(f"{where}: base_model", "linear has no base", remedy=remedy)
    merged = []
    for name, parameters in members:
        if name == base and method != "linear":
            if parameters.values:
                parameters.fail("weight", "none on the base_model")
        elif method == "slerp":
            if parameters.values:
                parameters.fail("weight", "none, because slerp uses t")
            merged.append((name, 0.0))
        elif "weight" in parameters.values:
            merged.append((name, _number(parameters, "weight", None)))
        elif global_weight is not None:
            merged.append((name, global_weight))
        else:
            parameters.fail("weight", "a number")
    if not merged or (method == "slerp" and len(merged) != 1):
        needed = "exactly one model" if method == "slerp" else "at least one model"
        got = f"{len(merged)} in addition to the base_model"
        raise ConfigError(f"{where}: models", "wrong number", got=got, expected=needed)
    weights = () if method == "slerp" else tuple(weight for _, weight in merged)
    return tuple(name for name, _ in merged), weights


def _tokenizer(fields: Fields, models: set[str]) -> str | None:
    """Return the model whose tokenizer is requested, or None for the donor's (`base`, or no tokenizer_source)."""
    source = fields.text("tokenizer_source")
    if source is not None and source != "base" and source not in models:
        remedy = "Other sources are not supported. Name one of these."
        fields.fail("tokenizer_source", "base or one of the models", remedy)
    return None if source == "base" else source


def _dtype(fields: Fields) -> torch.dtype | None:
    for key in ("out_dtype", "dtype"):
        name = fields.text(key)
        if name is not None and name not in _DTYPES:
            fields.fail(key, f"one of {list_some(_DTYPES)}")
    name = fields.text("out_dtype") or fields.text("dtype")
    return None if name is None else _DTYPES[name]
