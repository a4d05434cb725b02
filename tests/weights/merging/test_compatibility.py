"""Models that are not variants of one are told apart, by name, before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.small_models import model, recipe_text

from lastword.errors import LastwordError
from lastword.weights.files.blocks import workers
from lastword.weights.merging.merge import Merge
from lastword.weights.merging.recipe import parse_recipe


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> str:
    return model(tmp_path_factory.mktemp("models") / "first")


def edited(folder: str, target: Path, **settings) -> str:
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | settings))
    return str(target)


def other_vocabulary(folder: str, target: Path) -> str:
    shutil.copytree(folder, target)
    values = json.loads((target / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (target / "tokenizer.json").write_text(json.dumps(values))
    return str(target)


MISMATCHES = {
    "vocabulary-rows": (lambda f, t: model(t, vocab_size=600), "vocab_size; got 600, expected 512 as in"),
    "width": (lambda f, t: model(t, hidden_size=64), "hidden_size; got 64, expected 32 as in"),
    "depth": (lambda f, t: model(t, num_hidden_layers=3), "num_hidden_layers; got 3, expected 2"),
    "rope": (lambda f, t: edited(f, t, rope_theta=5e6), "rope; got .*5000000"),
    "epsilon": (lambda f, t: edited(f, t, rms_norm_eps=1e-5), "rms_norm_eps; got 1e-05, expected 1e-06"),
    "dtype": (lambda f, t: model(t, dtype=torch.bfloat16), "dtype; got BF16, expected F32 .* Say the dtype"),
    "tokens": (other_vocabulary, 'vocabulary; 2 tokens .* the first is "a": got id'),
    "gone": (lambda f, t: str(t), "no such folder"),
    "not-a-tokenizer": (
        lambda f, t: (other_vocabulary(f, t), (t / "tokenizer.json").write_text("{}"))[0],
        r"tokenizer\.json: not a tokenizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_mismatches_are_named_before_anything_is_written(tmp_path, first, mismatch):
    make, message = MISMATCHES[mismatch]
    text = recipe_text([first, make(first, tmp_path / "other")], [1, 1])
    before = sorted(tmp_path.iterdir())
    with workers() as threads, pytest.raises(LastwordError, match=message) as error:
        Merge(parse_recipe(text, "merge.yaml"), threads)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before
