"""Check that models can be merged: equal architecture, vocabulary and tensors."""

from collections.abc import Sequence
from pathlib import Path

from lastword.errors import ConfigError, WeightsError, list_some
from lastword.weights.files.companions import TOKENIZER, differing_companions, vocabulary
from lastword.weights.json_fields import MAX_TOKENIZER_BYTES, read_bytes, show_value
from lastword.weights.merging.stored import StoredModel
from lastword.weights.tensor_names import LM_HEAD


def check_agreement(models: Sequence[StoredModel], *, one_dtype: bool) -> None:
    """Refuse to merge models that are not variants of the same model.

    Args:
        models: at least one; the others are compared with the first.
        one_dtype: also compare the stored dtypes, tensor by tensor.

    Raises:
        ConfigError: a setting that affects the result differs.
        WeightsError: names, shapes, dtypes or tokens differ.
    """
    first = models[0]
    for other in models[1:]:
        if other.folder == first.folder:
            continue
        _check_configs(first, other)
        _check_tensors(first, other, one_dtype=one_dtype)
        _check_vocabularies(first.folder, other.folder)


def notices(donor: StoredModel, models: Sequence[StoredModel]) -> list[str]:
    """Return notices about companion files that differ from the copied ones, and about omitted tensors."""
    said = [
        f"{other.name}: files differ from those of {donor.name}, which are used: {list_some(files)}"
        for other in models
        if other.folder != donor.folder
        and (files := differing_companions(donor.folder, other.folder))
    ]
    without = [model.name for model in models if LM_HEAD not in model.tensors]
    if without and len(without) < len(models):
        said.append(f"{LM_HEAD} is omitted: not in {list_some(without)}; embeddings do not use it")
    return said


def _check_configs(first: StoredModel, other: StoredModel) -> None:
    found = other.config.numeric_settings()
    for name, mine in first.config.numeric_settings().items():
        if mine != found[name]:
            remedy = "Only variants of one model can be merged."
            if name == "vocab_size":
                remedy = "Change the models to one vocabulary first."
            raise ConfigError(
                f"{other.folder / 'config.json'}: {name}",
                "differs",
                got=str(found[name]),
                expected=f"{mine} as in {first.name}",
                remedy=remedy,
            )


def _check_tensors(first: StoredModel, other: StoredModel, *, one_dtype: bool) -> None:
    for name, mine in first.tensors.items():
        if name not in other.tensors:  # only `lm_head.weight` may be absent from some models
            continue
        theirs = other.tensors[name]
        where = f"{theirs.file}: tensor {name}"
        if mine.shape != theirs.shape:
            raise WeightsError(
                where,
                "wrong shape",
                got=str(list(theirs.shape)),
                expected=f"{list(mine.shape)} as in {first.name}",
            )
        if one_dtype and mine.dtype != theirs.dtype:
            raise WeightsError(
                where,
                "wrong dtype",
                got=theirs.dtype,
                expected=f"{mine.dtype} as in {first.name}",
                remedy="Set the dtype of the result with dtype: in the recipe.",
            )


def _check_vocabularies(first: Path, other: Path) -> None:
    """Compare tokens and ids; identical files are not parsed."""
    paths = (first / TOKENIZER, other / TOKENIZER)
    data = [read_bytes(path, limit=MAX_TOKENIZER_BYTES) for path in paths]
    if data[0] == data[1]:
        return
    mine, theirs = vocabulary(first), vocabulary(other)
    if mine == theirs:
        return
    different = [token for token in mine.keys() | theirs if mine.get(token) != theirs.get(token)]
    token = min(different)
    raise WeightsError(
        f"{other / TOKENIZER}: vocabulary",
        f"{len(different)} tokens differ from {first}, the first is {show_value(token)}",
        got=f"id {theirs.get(token)}",
        expected=str(mine.get(token)),
        remedy="Embedding rows of different tokens would be merged: use models with one tokenizer.",
    )
