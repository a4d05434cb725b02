"""Check that models can be merged: their architectures, vocabularies and tensor shapes must be equal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lastword.errors import ConfigError, WeightsError, count, list_some
from lastword.weights.config import LIMITS
from lastword.weights.files.companions import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_FILES,
    differing_companions,
    read_companion,
    read_vocabulary,
)
from lastword.weights.json_fields import show_value
from lastword.weights.merging.stored import StoredModel
from lastword.weights.tensor_names import LM_HEAD


def check_agreement(models: Sequence[StoredModel], *, one_dtype: bool) -> None:
    """Refuse to merge models that are not variants of the same model.

    Args:
        models: at least one; the others are compared with the first.
        one_dtype: whether to compare the stored dtypes too, tensor by tensor.

    Raises:
        ConfigError: a setting differs that affects the result.
        WeightsError: tensor shapes, tokens or (with `one_dtype`) dtypes differ.
    """
    first = models[0]
    for other in models[1:]:
        if other.folder == first.folder:
            continue
        _check_configs(first, other)
        _check_tensors(first, other, one_dtype=one_dtype)
        _check_vocabularies(first.folder, other.folder)


def notices(donor: StoredModel, models: Sequence[StoredModel]) -> list[str]:
    """Return messages for the user about differing files, and about an omitted `lm_head.weight`.

    A file is reported if a model's version of it differs from the donor's. The donor is the model whose companion files
    are copied. `lm_head.weight` is omitted from the result if only some of the models have it.
    """
    messages = []
    for other in models:
        if other.folder == donor.folder:
            continue
        messages += [
            f"{other.name}: {file} differs from the one in {donor.name}, which is used: {what}"
            for file, what in _differing_files(donor, other)
        ]
    without = [model.name for model in models if LM_HEAD not in model.tensors]
    if without and len(without) < len(models):
        missing = list_some(without)
        messages.append(f"{LM_HEAD} is omitted: not in {missing}; embeddings do not use it")
    return messages


def _differing_files(donor: StoredModel, other: StoredModel) -> Iterator[tuple[str, str]]:
    """Yield the name of each file that differs, and how; of config.json's settings only `LIMITS` are compared."""
    for name in sorted(LIMITS):
        mine, theirs = getattr(donor.config, name), getattr(other.config, name)
        if mine != theirs:
            yield CONFIG, f"{name} {theirs} (used: {mine})"
    yield from differing_companions(donor.folder, other.folder)


def check_tokenizer_source(source: str | None, donor: StoredModel, named: StoredModel) -> None:
    """Refuse a recipe that requests a tokenizer other than the donor's, because the donor's tokenizer is copied.

    Args:
        source: the recipe's `tokenizer_source`.
        donor: the model whose files are copied.
        named: the model that `source` names.

    Raises:
        ConfigError: a tokenizer file differs between the two models.
    """
    if named.folder == donor.folder:
        return
    differing = [
        file
        for file, _ in differing_companions(donor.folder, named.folder)
        if file in TOKENIZER_FILES
    ]
    if differing:
        raise ConfigError(
            "tokenizer_source",
            f"differs from the tokenizer of {donor.name}, which is used: {list_some(differing)}",
            got=show_value(source),
            expected=show_value(donor.name),
            remedy="Name the model with that tokenizer as base_model, or leave tokenizer_source out.",
        )


def _check_configs(first: StoredModel, other: StoredModel) -> None:
    mine, theirs = first.config.numeric_settings(), other.config.numeric_settings()
    differing = [name for name in mine if mine[name] != theirs[name]]
    if (
        "rope.kind" in differing
    ):  # one model has the kind "default", which ignores the other rotary settings
        unused = {name for name in mine if name.startswith("rope.")} - {"rope.kind", "rope.theta"}
        differing = [name for name in differing if name not in unused]
    if differing:
        remedy = "Only variants of one model can be merged."
        if differing == ["vocab_size"]:
            remedy = "Change the models to the same vocabulary first."
        raise ConfigError(
            str(other.folder / CONFIG),
            f"settings differ from those of {first.name}",
            got=list_some(f"{name} {theirs[name]}" for name in differing),
            expected=list_some(f"{name} {mine[name]}" for name in differing),
            remedy=remedy,
        )


def _check_tensors(first: StoredModel, other: StoredModel, *, one_dtype: bool) -> None:
    for name, mine in first.tensors.items():
        if name not in other.tensors:  # only `lm_head.weight` may be missing
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
    """Check that both tokenizers have the same tokens with the same ids; files with the same bytes are not parsed."""
    path = Path(TOKENIZER)
    if read_companion(first, path) == read_companion(other, path):
        return
    mine, theirs = read_vocabulary(first), read_vocabulary(other)
    if mine == theirs:
        return
    different = [token for token in mine.keys() | theirs if mine.get(token) != theirs.get(token)]
    token = min(different)
    raise WeightsError(
        f"{other / TOKENIZER}: vocabulary",
        f"differs from {first} in {count(len(different), 'token')}, the first being {show_value(token)}",
        got=_id(theirs, token),
        expected=_id(mine, token),
        remedy="Embedding rows of different tokens would be merged: use models with the same tokenizer.",
    )


def _id(vocabulary: dict[str, int], token: str) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "no such token"
