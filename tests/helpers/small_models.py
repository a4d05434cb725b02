"""Small models and recipes for the tests of merging, and the model that tests keep in a hub cache."""

import json
from pathlib import Path
from typing import Any

import yaml

from lastword.bench.checkpoint import make_checkpoint

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

DROP = object()  # a value that makes `change_file` remove its key

# The commit and the name of the model that tests put into a hub cache.
COMMIT = "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3"
NAME = "owner/model"


def snapshot_of(cache: Path) -> Path:
    """Return the folder of that model in a hub cache."""
    return cache / "models--owner--model" / "snapshots" / COMMIT


def model(folder: Path, seed: int = 0, **options) -> str:
    return str(make_checkpoint(folder, seed=seed, **{**SMALL, **options}))


def change_file(folder: Path, file: str, values: dict[str, Any] | list[Any]) -> Path:
    """Change keys of a JSON file, or create it; a list replaces its whole content."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    if isinstance(values, dict):
        before = json.loads(path.read_text()) if path.exists() else {}
        values = {key: value for key, value in (before | values).items() if value is not DROP}
    path.write_text(json.dumps(values))
    return path


def recipe_text(models, weights, method="multislerp", **others) -> str:
    listed = [
        {"model": str(name), **({"parameters": {"weight": weight}} if weight is not None else {})}
        for name, weight in zip(models, weights, strict=True)
    ]
    return yaml.safe_dump({"models": listed, "merge_method": method, **others})
