"""Compare merges with mergekit 0.1.5, if it is installed: equal up to its float32 arithmetic on small models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lastword.bench.checkpoint import make_checkpoint
from lastword.cli.main import main

pytest.importorskip(
    "mergekit",
    reason="mergekit is not installed (no dependency of lastword; pip install mergekit==0.1.5)",
)

RUN = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for recipe in sys.argv[1:]:
    with open(recipe) as file:
        config = MergeConfiguration.model_validate(yaml.safe_load(file))
    run_merge(config, recipe + ".theirs", MergeOptions(write_model_card=False, quiet=True))
"""
TWO = """
models:
- {model: m1, parameters: {weight: 2.8}}
- {model: m2, parameters: {weight: 4.3}}
"""
THREE = TWO + "- {model: m3, parameters: {weight: -0.5}}\n"
LISTED = "models: [{model: m0}, {model: m1, parameters: {weight: 0.3}}, {model: m2, parameters: {weight: 1.5}}]\n"
RECIPES = {
    "card": TWO + "merge_method: multislerp\ndtype: float32",
    "multislerp-3": THREE + "merge_method: multislerp",
    "multislerp-raw": THREE + "merge_method: multislerp\nparameters: {normalize_weights: false}",
    "multislerp-base": LISTED + "merge_method: multislerp\nbase_model: m0",
    "multislerp-1": "models: [{model: m1, parameters: {weight: 3}}]\nmerge_method: multislerp",
    "linear": THREE + "merge_method: linear",
    "linear-raw": THREE + "merge_method: linear\nparameters: {normalize: false}",
    "task-arithmetic": LISTED + "merge_method: task_arithmetic\nbase_model: m0\nparameters: {lambda: 0.6}",
    "task-arithmetic-norm": LISTED
    + "merge_method: task_arithmetic\nbase_model: m0\nparameters: {normalize: true}",
    "slerp": "models: [{model: m1}, {model: m2}]\nmerge_method: slerp\nbase_model: m2\nparameters: {t: 0.3}",
    "bf16": TWO + "merge_method: multislerp\ndtype: float32\nout_dtype: bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> Path:
    """Create a folder with four models and mergekit's result of each recipe in `RECIPE.theirs`."""
    root = tmp_path_factory.mktemp("models")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "prefix": "model.",
    }
    for i in range(4):
        make_checkpoint(root / f"m{i}", seed=i, num_key_value_heads=1, **sizes)
    for name, recipe in RECIPES.items():
        (root / name).write_text(recipe, encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUN, *RECIPES]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_weights(merged, tmp_path, monkeypatch, name):
    monkeypatch.chdir(merged)
    assert main(["merge", name, str(tmp_path / "ours"), "--quiet"]) == 0
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = {}
    for file in (merged / f"{name}.theirs").glob("*.safetensors"):
        theirs |= load_file(file)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        other = theirs[key]
        assert tensor.dtype == other.dtype
        apart = float((tensor.double() - other.double()).norm() / other.double().norm())
        assert apart < (1e-3 if tensor.itemsize == 2 else 2e-6), f"{key}: {apart:.1e}"
