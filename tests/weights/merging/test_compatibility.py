"""Models that are not variants of the same model are refused by name before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.small_models import model, recipe_text

from lastword.errors import LastwordError
from lastword.weights.files.blocks import block_threads
from lastword.weights.merging.merge import Merge
from lastword.weights.merging.recipe import parse_recipe


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> str:
    return model(tmp_path_factory.mktemp("models") / "first")


def copy_edited(folder: str, target: Path, **settings) -> str:
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | settings))
    return str(target)


def copy_with_other_vocabulary(folder: str, target: Path) -> str:
    shutil.copytree(folder, target)
    values = json.loads((target / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (target / "tokenizer.json").write_text(json.dumps(values))
    return str(target)


VARIANTS = "Only variants of one model can be merged."
# A model that differs from the first, and the error's parts: where, what, got, expected, remedy.
MISMATCHES = {
    "vocabulary-rows": (lambda f, t: model(t, vocab_size=600), "config.json: vocab_size", "differs", "600", "512 as in",
                        "Change the models to one vocabulary first."),
    "width": (lambda f, t: model(t, hidden_size=64), "config.json: hidden_size", "differs", "64", "32 as in", VARIANTS),
    "depth": (lambda f, t: model(t, num_hidden_layers=3), "config.json: num_hidden_layers", "differs", "3", "2 as in",
              VARIANTS),
    "rope": (lambda f, t: copy_edited(f, t, rope_theta=5e6), "config.json: rope.theta", "differs", "5000000.0",
             "1000000.0 as in", VARIANTS),
    "epsilon": (lambda f, t: copy_edited(f, t, rms_norm_eps=1e-5), "config.json: rms_norm_eps", "differs", "1e-05",
                "1e-06 as in", VARIANTS),
    "dtype": (lambda f, t: model(t, dtype=torch.bfloat16), "model.safetensors: tensor embed_tokens.weight",
              "wrong dtype", "BF16", "F32 as in", "Set the dtype of the result with dtype: in the recipe."),
    "tokens": (copy_with_other_vocabulary, "tokenizer.json: vocabulary", "2 tokens differ from", "id ", "",
               "Embedding rows of different tokens would be merged: use models with one tokenizer."),
    "gone": (lambda f, t: str(t), "", "no such folder", None, None, None),
    "not-a-tokenizer": (
        lambda f, t: (copy_with_other_vocabulary(f, t), (t / "tokenizer.json").write_text("{}"))[0],
        "tokenizer.json", "not a tokenizer (", None, None, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_mismatches_are_named_before_anything_is_written(tmp_path, first, mismatch):
    make, place, what, got, expected, remedy = MISMATCHES[mismatch]
    text = recipe_text([first, make(first, tmp_path / "other")], [1, 1])
    before = sorted(tmp_path.iterdir())
    with block_threads() as threads, pytest.raises(LastwordError) as caught:
        Merge(parse_recipe(text, "merge.yaml"), threads)
    error = caught.value
    assert error.where == "/".join(filter(None, (str(tmp_path / "other"), place)))
    assert error.what.startswith(what)
    assert error.remedy == remedy
    if mismatch == "tokens":
        assert error.what == f'2 tokens differ from {first}, the first is "a"'
        assert int(error.got.removeprefix("id ")) != int(error.expected)
    else:
        assert error.got == got
        assert error.expected == (None if expected is None else f"{expected} {first}")
    assert "\n" not in str(error)
    assert sorted(tmp_path.iterdir()) == before


def test_a_limit_does_not_keep_models_apart(tmp_path, first):
    other = copy_edited(first, tmp_path / "other", max_position_embeddings=8192)
    with block_threads() as threads:
        job = Merge(parse_recipe(recipe_text([first, other], [1, 1]), "merge.yaml"), threads)
    limits = [each.config.max_position_embeddings for each in job.opened.values()]
    assert limits == [4096, 8192]
