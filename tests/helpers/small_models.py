"""Small models and recipes for the tests of merging, and the model that tests keep in a hub cache."""

from pathlib import Path

import yaml

from lastword.bench.checkpoint import make_checkpoint

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

# The model in a hub cache.
COMMIT = "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3"
NAME = "owner/model"


def snapshot_of(cache: Path) -> Path:
    """Where it stands there."""
    return cache / "models--owner--model" / "snapshots" / COMMIT


def model(folder: Path, seed: int = 0, **options) -> str:
    return str(make_checkpoint(folder, seed=seed, **{**SMALL, **options}))


def recipe_text(models, weights, method="multislerp", **others) -> str:
    listed = [
        {"model": str(name), **({"parameters": {"weight": weight}} if weight is not None else {})}
        for name, weight in zip(models, weights, strict=True)
    ]
    return yaml.safe_dump({"models": listed, "merge_method": method, **others})
