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


DIFFER, VARIANTS = "settings differ from those of", "Only variants of one model can be merged."
MORE = "intermediate_size {}, num_attention_heads {}, num_hidden_layers {} and 2 more"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
# A model that differs from the first, and the error's parts: where, what, got, expected, remedy.
MISMATCHES = {
    "vocabulary-rows": (lambda f, t: model(t, vocab_size=600), "config.json", DIFFER, "vocab_size 600",
                        "vocab_size 512", "Change the models to the same vocabulary first."),
    "width": (lambda f, t: model(t, hidden_size=64), "config.json", DIFFER, "hidden_size 64", "hidden_size 32",
              VARIANTS),
    "depth": (lambda f, t: model(t, num_hidden_layers=3), "config.json", DIFFER, "num_hidden_layers 3",
              "num_hidden_layers 2", VARIANTS),
    "rope": (lambda f, t: copy_edited(f, t, rope_theta=5e6), "config.json", DIFFER, "rope.theta 5000000.0",
             "rope.theta 1000000.0", VARIANTS),
    "yarn": (lambda f, t: copy_edited(f, t, rope_scaling=YARN, max_position_embeddings=16384), "config.json", DIFFER,
             "rope.kind yarn", "rope.kind default", VARIANTS),
    "epsilon-and-theta": (lambda f, t: copy_edited(f, t, rms_norm_eps=1e-5, rope_theta=5e6), "config.json", DIFFER,
                          "rms_norm_eps 1e-05, rope.theta 5000000.0", "rms_norm_eps 1e-06, rope.theta 1000000.0",
                          VARIANTS),
    "everything": (lambda f, t: model(t, hidden_size=64, intermediate_size=64, num_attention_heads=4, vocab_size=600,
                                      num_hidden_layers=3, head_dim=8, num_key_value_heads=4),
                   "config.json", DIFFER, f"head_dim 8, hidden_size 64, {MORE.format(64, 4, 3)}",
                   f"head_dim 32, hidden_size 32, {MORE.format(48, 2, 2)}", VARIANTS),
    "dtype": (lambda f, t: model(t, dtype=torch.bfloat16), "model.safetensors: tensor embed_tokens.weight",
              "wrong dtype", "BF16", "F32 as in FIRST", "Set the dtype of the result with dtype: in the recipe."),
    "tokens": (copy_with_other_vocabulary, "tokenizer.json: vocabulary", "differs from", "id ", "id ",
               "Embedding rows of different tokens would be merged: use models with the same tokenizer."),
    "gone": (lambda f, t: str(t), "", "no such folder", None, None, None),
    "not-a-tokenizer": (
        lambda f, t: (copy_with_other_vocabulary(f, t), (t / "tokenizer.json").write_text("{}"))[0],
        "tokenizer.json", "not a tokenizer (", None, None, "Fetch the file again.",
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
        assert error.what == f'differs from {first} in 2 tokens, the first being "a"'
        assert int(error.got.removeprefix(got)) != int(error.expected.removeprefix(expected))
    else:
        assert error.got == got
        assert error.expected == (expected and expected.replace("FIRST", first))
    assert "\n" not in str(error)
    assert sorted(tmp_path.iterdir()) == before


def test_a_limit_does_not_keep_models_apart(tmp_path, first):
    other = copy_edited(first, tmp_path / "other", max_position_embeddings=8192)
    with block_threads() as threads:
        job = Merge(parse_recipe(recipe_text([first, other], [1, 1]), "merge.yaml"), threads)
    limits = [each.config.max_position_embeddings for each in job.opened.values()]
    assert limits == [4096, 8192]
