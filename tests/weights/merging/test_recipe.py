"""Recipes: mergekit's YAML is read with its meaning there, and everything not supported is refused by name."""

import builtins
import os
from pathlib import Path

import pytest
import torch
from helpers.messages import refusal

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
        with pytest.raises(ConfigError) as caught:
            parse_recipe(text, "merge.yaml")
        assert caught.value.where == "merge.yaml: models: entry 1: parameters: weight"
        assert caught.value.what == "missing"
        return
    made = parse_recipe(text, "merge.yaml")
    assert {key: getattr(made, key) for key in expected} == expected


ENTRY = ": models: entry 1"
WEIGHT, WRONG, FINITE = (
    f"{ENTRY}: parameters: weight",
    "wrong value",
    "a finite number, at most 1e+100 in size",
)
WHOLE = "a merge of whole models, listed under models:"
LINEAR = TWO + "merge_method: linear"
ADAPTERS = "Adapters are not supported. Merge the adapter into its model first."


WEIGHTS = ("1e101", "-1e400", "1_0x", "nan", "inf", "-")
PLAIN = ("a plain value", "Write the value itself.")
NAME = "a folder or a hub id in one line of at most 1000 characters"


def weigh(weight: str) -> str:
    return TWO.replace("1", weight) + "merge_method: linear"


def unknown(what: str, known: str) -> tuple[str, None, str, str]:
    return what, None, known, "Remove them."


REFUSED = [
    ("", "", "wrong content", "null", "names with values"),
    ("- a\n- b", "", "wrong content", '["a", "b"]', "names with values"),
    ("models: [", ":1", "not valid YAML (a value is missing)"),
    ("a: 1\na: 2", ":1", 'key "a" occurs twice', None, "once"),
    (TWO, ": merge_method", "missing", None, "a method's name"),
    (TWO + "merge_method: ties", ": merge_method", WRONG, '"ties"',
     "one of linear, multislerp, slerp, task_arithmetic", "Other methods are not supported."),
    ("merge_method: linear", ": models", "missing", None, "a list of models"),
    ("merge_method: linear\nmodels: []", ": models", WRONG, "[]", "a list of models"),
    ("merge_method: linear\nmodels: [a]", ENTRY, "wrong content", '"a"', "names with values"),
    ("merge_method: linear\nmodels: [{model: 3}]", f"{ENTRY}: model", WRONG, "3", "a folder or a hub id"),
    ("merge_method: linear\nmodels: [{model: a, weight: 1}]", ENTRY,
     *unknown("keys that are not supported: weight", "model, parameters")),
    ("merge_method: linear\nmodels: [{model: a, parameters: {density: 1}}]", f"{ENTRY}: parameters",
     *unknown("parameters of a model that are not supported: density", "weight")),
    ("merge_method: linear\nmodels: [{model: a+lora}]", f"{ENTRY}: model", WRONG, '"a+lora"', "one model", ADAPTERS),
    ("merge_method: linear\nmodels: [{model: a}]", WEIGHT, "missing", None, "a number"),
    (weigh("[0, 1]"), WEIGHT, WRONG, "[0, 1]", "one number", "Gradients are not supported. Write one number."),
    (weigh("[{filter: mlp, value: 1}]"), WEIGHT, WRONG, '[{"filter": "mlp", "value": 1}]', "one number",
     "Filters are not supported. Write one number."),
    (weigh("{value: 1}"), WEIGHT, WRONG, '{"value": 1}', "one number",
     "Filters are not supported. Write one number."),
    (weigh("heavy"), WEIGHT, WRONG, '"heavy"', FINITE),
    (weigh(".nan"), WEIGHT, WRONG, "NaN", FINITE),
    (weigh("1" + 400 * "0"), WEIGHT, WRONG, "1" + 58 * "0" + "…", FINITE),
    (weigh("true"), WEIGHT, WRONG, "true", FINITE),
    ("slices: []\nmerge_method: linear", ": slices", "not supported", None, WHOLE, "Remove it."),
    (TWO + "modules: {}\nmerge_method: linear", ": modules", "not supported", None, WHOLE, "Remove it."),
    (LINEAR + "\ntokenizer: {source: base}", ": tokenizer", "not supported", None, WHOLE, "Remove it."),
    (TWO + "tokenizer_source: union\nmerge_method: linear", ": tokenizer_source", WRONG, '"union"',
     "base or one of the models", "Other sources are not supported. Name one of these."),
    (LINEAR + "\nchat_template: auto", ": chat_template", "not supported", None, WHOLE, "Remove it."),
    (LINEAR + "\ndensity: 1", "", *unknown("keys that are not supported: density",
     "base_model, dtype, merge_method, models, out_dtype, parameters, tokenizer_source")),
    (LINEAR + "\nparameters: {t: 1}", ": parameters",
     *unknown("parameters of linear that are not supported: t", "normalize, weight")),
    (TWO + "merge_method: multislerp\nparameters: {eps: 1}", ": parameters",
     *unknown("parameters of multislerp that are not supported: eps", "normalize_weights, weight")),
    (TWO + "merge_method: multislerp\nparameters: {normalize: no}", ": parameters: normalize", WRONG, "false",
     "no such parameter", "Use normalize_weights with multislerp."),
    (LINEAR + "\nparameters: {normalize: 1}", ": parameters: normalize", WRONG, "1", "true or false"),
    (LINEAR + "\ndtype: int8", ": dtype", WRONG, '"int8"', "one of bfloat16, float16, float32"),
    (LINEAR + "\nout_dtype: half", ": out_dtype", WRONG, '"half"', "one of bfloat16, float16, float32"),
    (LINEAR + "\nbase_model: c", ": base_model", "linear has no base", None, None,
     "List it under models with a weight, or remove it."),
    (TWO + "merge_method: task_arithmetic", ": base_model", "missing", None, None,
     "task_arithmetic needs a base_model. Add one."),
    (TWO + "merge_method: slerp\nparameters: {t: 1}", ": base_model", "missing", None, None,
     "slerp needs a base_model. Add one."),
    (TWO + SLERP + "parameters: {t: 0.5}", WEIGHT, WRONG, "1", "none on the base_model"),
    ("models: [{model: b, parameters: {weight: 1}}]\n" + SLERP + "parameters: {t: 0.5}", WEIGHT, WRONG, "1",
     "none, because slerp uses t"),
    ("models: [{model: a}]\n" + SLERP + "parameters: {t: 0.5}", ": models", "wrong number",
     "0 in addition to the base_model", "exactly one model"),
    ("models: [{model: a}, {model: b}, {model: c}]\n" + SLERP + "parameters: {t: 0.5}", ": models", "wrong number",
     "2 in addition to the base_model", "exactly one model"),
    ("models: [{model: b}]\n" + SLERP, ": parameters: t", "missing", None, FINITE),
    ("models: [{model: b}]\n" + SLERP + "parameters: {t: 1.5}", ": parameters: t", WRONG, "1.5",
     "a number from 0 to 1"),
    ("models: [{model: a}]\nbase_model: a\nmerge_method: multislerp", ": models", "wrong number",
     "0 in addition to the base_model", "at least one model"),
    ("!!python/object:os.system {}", ":1", "tags are not supported", '"tag:yaml.org,2002:python/object:os.system"',
     *PLAIN),
    (LINEAR + "\ndtype: !!bool float32", ":3", "tags are not supported", '"tag:yaml.org,2002:bool"', *PLAIN),
    (LINEAR + "\ndtype: !" + "x" * 3000, ":3", "tags are not supported", '"!' + "x" * 57 + "…", *PLAIN),
    ("a: &x [*x]", ":1", "aliases are not supported", '"x"', *PLAIN),
    ("models: [{model: m, parameters: &p {weight: 1}},\n {model: n, parameters: *p}]", ":2",
     "aliases are not supported", '"p"', *PLAIN),
    ("[" * 5000, "", "not valid YAML (nested too deeply)"),
    (LINEAR + "\n? " + "[" * 400 + "]" * 400, "", "not valid YAML (nested too deeply)"),
    ("dtype: " + "9" * 5000, "", "not valid YAML (a number or date that cannot be read)"),
    ("dtype: 0x_", "", "not valid YAML (a number or date that cannot be read)"),
    ("dtype: 1" + ":59" * 400 + ".5", "", "not valid YAML (a number or date that cannot be read)"),
    ("dtype: 2001-99-99", "", "not valid YAML (a number or date that cannot be read)"),
    ("dtype: =", ":1", "not valid YAML (a tag that is not supported)"),
    ("a: \x00", "", "not valid YAML (a control character)"),
    ("a: b: c", ":1", "not valid YAML (a second colon in the line, or wrong indentation: quote the value)"),
    ("a\nb: 1", ":2", "not valid YAML (a second colon in the line, or wrong indentation: quote the value)"),
    ("a: 1\nb\n", ":3", "not valid YAML (a key without a colon)"),
    ("a: [1 2", ":1", "not valid YAML (a comma or a closing bracket is missing)"),
    ("a: 'b' c", ":1", "not valid YAML (wrong indentation, or something follows a closing quote)"),
    ("a:\n\t- b", ":2", "not valid YAML (a character that cannot begin a value, such as a tab or @: quote it)"),
    ("a: 'b", ":1", "not valid YAML (a quote is not closed)"),
    ('a: "\\q"', ":1", "not valid YAML (a backslash before a character that needs none)"),
    ("a: 1\n---\nb: 1", ":2", "not valid YAML (more than one document)"),
    (LINEAR + "\nparameters: [1]", ": parameters", "wrong content", "[1]", "names with values"),
    (LINEAR + "\nparameters: []", ": parameters", "wrong content", "[]", "names with values"),
    ("merge_method: linear\nmodels: [" + "{model: a}," * 257 + "]", ": models", "too many", "257", "at most 256"),
    ('merge_method: linear\nmodels: [{model: "a\\nb"}]', f"{ENTRY}: model", WRONG, '"a\\nb"', NAME),
    ('merge_method: linear\nmodels: [{model: "\\ud800"}]', f"{ENTRY}: model", WRONG, '"\\ud800"', NAME),
    ("merge_method: linear\nmodels: [{model: ' '}]", f"{ENTRY}: model", WRONG, '" "', "a folder or a hub id"),
    (f"merge_method: linear\nmodels: [{{model: {'x' * 1001}}}]", f"{ENTRY}: model", WRONG, '"' + 58 * "x" + "…", NAME),
    *((weigh(weight), WEIGHT, WRONG, f'"{weight}"', FINITE) for weight in WEIGHTS),
    (weigh("'1_0'"), WEIGHT, WRONG, '"1_0"', FINITE),
    ("? [a]\n: 1", "", "not valid YAML (a list or mapping as a key)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "place", "parts"), [(text, place, parts) for text, place, *parts in REFUSED]
)
def test_refused(text, place, parts):
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, "merge.yaml")
    error = caught.value
    assert error.where == f"merge.yaml{place}"
    found = [error.what, error.got, error.expected, error.remedy]
    assert found == [*parts, None, None, None][:4]
    assert "\n" not in str(error)


def test_files(tmp_path):
    (tmp_path / "merge.yaml").write_text(CARD, encoding="utf-8")
    assert read_recipe(tmp_path / "merge.yaml").weights == (2.8, 4.3)
    with pytest.raises(WeightsError) as caught:
        read_recipe(tmp_path / "gone.yaml")
    gone = WeightsError(
        str(tmp_path / "gone.yaml"), "no such file", remedy="Name the recipe, a YAML file."
    )
    assert vars(caught.value) == vars(gone)
    (tmp_path / "large.yaml").write_text("#" * 65_537)
    with refusal(ConfigError, where=str(tmp_path / "large.yaml"), what="too large"):
        read_recipe(tmp_path / "large.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    for place, kind in ((tmp_path / "pipe.yaml", "pipe"), (Path("/dev/zero"), "device")):
        with refusal(WeightsError, where=str(place), what=f"cannot be read (it is a {kind})"):
            read_recipe(place)
    (tmp_path / "latin.yaml").write_bytes(b"models: \xff")
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path / "latin.yaml")
    assert caught.value.where == str(tmp_path / "latin.yaml")
    assert caught.value.what == "not UTF-8 at byte 8"


def test_without_pyyaml(monkeypatch):
    real = builtins.__import__

    def missing(name, *others, **named):
        if name == "yaml":
            raise ImportError("No module named 'yaml'")
        return real(name, *others, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingPackageError) as caught:
        parse_recipe(CARD, "merge.yaml")
    error = caught.value
    assert (error.where, error.what) == ("merge", "needs PyYAML")
    assert "No module named 'yaml'" in error.got
    assert "pip install 'lastword[merge]'" in error.remedy
