"""Recipes: mergekit's YAML read as it is meant, and everything else refused by name."""

import builtins

import pytest
import torch

from lastword.errors import ConfigError, MissingPackageError, WeightsError
from lastword.weights.merging.recipe import parse_recipe, read_recipe

CARD = """
models:
  - model: stage1
    parameters: {weight: 2.8}
  - model: stage2
    parameters: {weight: 4.3}
merge_method: multislerp
dtype: float32
"""
TWO = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]\n"
SHARED = """
models: [{model: a}, {model: b}, {model: c, parameters: {weight: 2}}]
base_model: a
merge_method: multislerp
parameters: {weight: 0.5, normalize_weights: false}
"""
SLERP = "merge_method: slerp\nbase_model: a\n"


def test_the_merge_that_made_the_model():
    made = parse_recipe(CARD, "merge.yaml")
    assert (made.method, made.models, made.weights) == (
        "multislerp",
        ("stage1", "stage2"),
        (2.8, 4.3),
    )
    assert (made.base, made.donor, made.dtype) == (None, "stage1", torch.float32)
    assert made.parameters == {"normalize_weights": True}
    assert made.normalize
    assert made.text == CARD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TWO + "merge_method: linear", {"weights": (1, 2), "normalize": True}),
        (
            TWO + "merge_method: linear\nparameters: {normalize: false}\nbase_model: b",
            {"base": None, "donor": "b", "normalize": False},
        ),
        (
            TWO + "merge_method: task_arithmetic\nbase_model: c\nparameters: {lambda: 1e-1}",
            {"base": "c", "donor": "c", "parameters": {"normalize": False, "lambda": 0.1}},
        ),
        (
            SHARED,
            {"models": ("b", "c"), "weights": (0.5, 2.0), "base": "a", "donor": "a", "normalize": False},
        ),
        (
            "models: [{model: a}, {model: b}]\n" + SLERP + "parameters: {t: 0.25}",
            {"models": ("a", "b"), "weights": (), "base": None, "donor": "a", "parameters": {"t": 0.25}},
        ),
        ("models: [{model: b}]\n" + SLERP + "parameters: {t: 1}", {"models": ("a", "b"), "normalize": False}),
        (TWO + "merge_method: linear\ndtype: float32\nout_dtype: bfloat16", {"dtype": torch.bfloat16}),
        (TWO + "merge_method: linear\ntokenizer_source: base", {"dtype": None}),
        (TWO + "merge_method: linear\nslices: null", {"donor": "a"}),
        ("base_model: a\nmerge_method: multislerp\n" + TWO.replace("a, parameters: {weight: 1}", "x"), None),
    ],
)  # fmt: skip
def test_accepted(text, expected):
    if expected is None:
        with pytest.raises(ConfigError, match="entry 1: parameters: weight is missing"):
            parse_recipe(text, "merge.yaml")
        return
    made = parse_recipe(text, "merge.yaml")
    assert {key: getattr(made, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got null, expected a mapping"),
        ("- a\n- b", "expected a mapping"),
        ("models: [", r"merge\.yaml:1: not valid YAML"),
        ("a: 1\na: 2", r'merge\.yaml:1: key "a" stands twice'),
        (TWO, "merge_method is missing"),
        (TWO + "merge_method: ties", 'merge_method; got "ties", expected one of linear, multislerp, slerp'),
        ("merge_method: linear", "models is missing, expected a list of models"),
        ("merge_method: linear\nmodels: []", "models; got \\[\\]"),
        ("merge_method: linear\nmodels: [a]", 'entry 1: got "a", expected a mapping'),
        ("merge_method: linear\nmodels: [{model: 3}]", "entry 1: model; got 3, expected a folder"),
        ("merge_method: linear\nmodels: [{model: a, weight: 1}]", "not implemented: weight"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {density: 1}}]", "density"),
        ("merge_method: linear\nmodels: [{model: a+lora}]", "Adapters are not merged"),
        ("merge_method: linear\nmodels: [{model: a}]", "entry 1: parameters: weight is missing"),
        (TWO.replace("1", "[0, 1]") + "merge_method: linear", "one number. Gradients are not impl"),
        (TWO.replace("1", "[{filter: mlp, value: 1}]") + "merge_method: linear", "Filters are not impl"),
        (TWO.replace("1", "{value: 1}") + "merge_method: linear", "Filters are not impl"),
        (TWO.replace("1", "heavy") + "merge_method: linear", 'weight; got "heavy", expected a finite'),
        (TWO.replace("1", ".nan") + "merge_method: linear", "expected a finite number"),
        (TWO.replace("1", "1" + 400 * "0") + "merge_method: linear", "expected a finite number"),
        (TWO.replace("1", "true") + "merge_method: linear", "expected a finite number"),
        ("slices: []\nmerge_method: linear", "slices is not implemented"),
        (TWO + "modules: {}\nmerge_method: linear", "modules is not implemented"),
        (TWO + "tokenizer: {source: base}\nmerge_method: linear", "tokenizer is not implemented"),
        (TWO + "tokenizer_source: union\nmerge_method: linear", 'got "union", expected base or'),
        (TWO + "chat_template: auto\nmerge_method: linear", "chat_template is not implemented"),
        (TWO + "merge_method: linear\ndensity: 1", "keys that are not implemented: density"),
        (TWO + "merge_method: linear\nparameters: {t: 1}", "parameters of linear .*: t;"),
        (TWO + "merge_method: multislerp\nparameters: {eps: 1}", "parameters of multislerp .*: eps;"),
        (TWO + "merge_method: multislerp\nparameters: {normalize: no}", "calls it normalize_weights"),
        (TWO + "merge_method: linear\nparameters: {normalize: 1}", "expected true or false"),
        (TWO + "merge_method: linear\ndtype: int8", 'dtype; got "int8", expected one of bfloat16'),
        (TWO + "merge_method: linear\nout_dtype: half", 'out_dtype; got "half"'),
        (TWO + "merge_method: linear\nbase_model: c", "linear has no base"),
        (TWO + "merge_method: task_arithmetic", "base_model is missing, task_arithmetic needs one"),
        (TWO + "merge_method: slerp\nparameters: {t: 1}", "base_model is missing, slerp needs one"),
        (TWO + SLERP + "parameters: {t: 0.5}", "expected none on the base_model"),
        ("models: [{model: b, parameters: {weight: 1}}]\n" + SLERP + "parameters: {t: 0.5}", "none: slerp"),
        ("models: [{model: a}]\n" + SLERP + "parameters: {t: 0.5}", "got 0 beside the base_model"),
        ("models: [{model: a}, {model: b}, {model: c}]\n" + SLERP + "parameters: {t: 0.5}", "exactly one"),
        ("models: [{model: b}]\n" + SLERP, "parameters: t is missing"),
        ("models: [{model: b}]\n" + SLERP + "parameters: {t: 1.5}", "t; got 1.5, expected a number from 0"),
        ("models: [{model: a}]\nbase_model: a\nmerge_method: multislerp", "got 0 beside the base_model"),
        ("!!python/object:os.system {}", "not valid YAML"),
        ("a: &x [*x]", "not"),
        ("? [a]\n: 1", "not valid YAML; unhashable"),
    ],
)  # fmt: skip
def test_refused(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse_recipe(text, "merge.yaml")
    assert str(error.value).startswith("merge.yaml:")
    assert "\n" not in str(error.value)


def test_files(tmp_path):
    (tmp_path / "merge.yaml").write_text(CARD, encoding="utf-8")
    assert read_recipe(tmp_path / "merge.yaml").weights == (2.8, 4.3)
    with pytest.raises(WeightsError, match=r"no such file\. Name the recipe, a YAML file$"):
        read_recipe(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"models: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 8"):
        read_recipe(tmp_path / "latin.yaml")


def test_without_pyyaml(monkeypatch):
    real = builtins.__import__

    def missing(name, *others, **named):
        if name == "yaml":
            raise ImportError("No module named 'yaml'")
        return real(name, *others, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    expected = r"merge: needs PyYAML; No module named 'yaml'\. .* pip install 'lastword\[merge\]'"
    with pytest.raises(MissingPackageError, match=expected):
        parse_recipe(CARD, "merge.yaml")
