"""Models held to each other before they are merged: one architecture, one vocabulary, one set of tensors."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from lastword.errors import ConfigError, WeightsError, some
from lastword.weights.config import ModelConfig
from lastword.weights.files.companions import TOKENIZER, differing, vocabulary
from lastword.weights.json_fields import read_bytes, shown
from lastword.weights.merging.stored import StoredModel
from lastword.weights.tensor_names import LM_HEAD

_FREE = ("max_position_embeddings",)  # a limit, no part of the arithmetic


def check_agreement(models: Sequence[StoredModel], *, one_dtype: bool) -> None:
    """Refuse to mix models that are not variants of one.

    Args:
        models: at least one; the others are compared to the first.
        one_dtype: hold the stored dtypes to each other too, tensor by tensor.

    Raises:
        ConfigError: a setting under which the models compute otherwise.
        WeightsError: other names, shapes, dtypes or tokens.
    """
    first = models[0]
    for other in models[1:]:
        if other.folder == first.folder:
            continue
        _check_configs(first, other)
        _check_tensors(first, other, one_dtype=one_dtype)
        _check_vocabularies(first.folder, other.folder)


def notices(donor: StoredModel, models: Sequence[StoredModel]) -> list[str]:
    """Say which files beside the weights differ from those taken over, and what is left out."""
    said = [
        f"{other.name}: differs from {donor.name}, whose files are taken, in {some(files)}"
        for other in models
        if other.folder != donor.folder and (files := differing(donor.folder, other.folder))
    ]
    without = [model.name for model in models if LM_HEAD not in model.tensors]
    if without and len(without) < len(models):
        said.append(f"{LM_HEAD} is left out: not in {some(without)}; embeddings do not use it")
    return said


def _check_configs(first: StoredModel, other: StoredModel) -> None:
    for each in fields(ModelConfig):
        mine, theirs = getattr(first.config, each.name), getattr(other.config, each.name)
        if mine != theirs and each.name not in _FREE:
            remedy = (
                "Give the models one vocabulary first"
                if each.name == "vocab_size"
                else "Only variants of one model can be merged"
            )
            raise ConfigError(
                f"{other.folder / 'config.json'}: {each.name}; got {theirs}, expected {mine} "
                f"as in {first.name}. {remedy}"
            )


def _check_tensors(first: StoredModel, other: StoredModel, *, one_dtype: bool) -> None:
    for name in first.tensors.keys() & other.tensors.keys():
        mine, theirs = first.tensors[name], other.tensors[name]
        if mine.shape != theirs.shape:
            raise WeightsError(
                f"{theirs.file}: tensor {name}: shape; got {list(theirs.shape)}, "
                f"expected {list(mine.shape)} as in {first.name}"
            )
        if one_dtype and mine.dtype != theirs.dtype:
            raise WeightsError(
                f"{theirs.file}: tensor {name}: dtype; got {theirs.dtype}, expected {mine.dtype} "
                f"as in {first.name}. Say the dtype of the result with dtype: in the recipe"
            )


def _check_vocabularies(first: Path, other: Path) -> None:
    """Compare tokens and ids; files of equal bytes need no parsing."""
    if read_bytes(first / TOKENIZER) == read_bytes(other / TOKENIZER):
        return
    mine, theirs = vocabulary(first), vocabulary(other)
    if mine == theirs:
        return
    different = [token for token in mine.keys() | theirs if mine.get(token) != theirs.get(token)]
    token = min(different)
    raise WeightsError(
        f"{other / TOKENIZER}: vocabulary; {len(different)} tokens are not as in {first}, the first is "
        f"{shown(token)}: got id {theirs.get(token)}, expected {mine.get(token)}. "
        "Rows of the embedding would be mixed up: use models of one tokenizer"
    )
