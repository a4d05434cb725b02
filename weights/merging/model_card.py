"""Write the README.md of a merged model: how it was made, in enough detail to reproduce it."""

import json
from collections.abc import Mapping
from textwrap import indent

from lastword.weights.files.dtypes import dtype_name
from lastword.weights.files.writer import TensorSpecs
from lastword.weights.merging.recipe import Recipe
from lastword.weights.merging.stored import StoredModel

_FORMULAS = {
    "linear": "out = sum_i w_i x_i",
    "slerp": "out = sin((1 - t) a) / sin(a) x_0 + sin(t a) / sin(a) x_1, where a is the angle between x_0 and x_1 "
    "(linear if they are nearly parallel)",
    "multislerp": "S = sum_i w_i x_i / |x_i|, out = (sum_i w_i |x_i|) S / |S|",
    "task_arithmetic": "out = base + lambda sum_i w_i (x_i - base)",
}


def merge_card(
    recipe: Recipe, models: Mapping[str, StoredModel], specs: TensorSpecs, fingerprint: str
) -> str:
    """Return the model card: front matter, formula, the recipe, and hashes of the models merged and of the result.

    Args:
        recipe: the recipe.
        models: the recipe's models, by name.
        specs: dtype and shape of each tensor of the result.
        fingerprint: hash of the result's weights.
    """
    hub = [model.files.name for model in models.values() if model.files.revision is not None]
    front = ["---", "library_name: sentence-transformers", "pipeline_tag: feature-extraction"]
    front += ["tags:", "- lastword", "- merge", "- sentence-transformers"]
    if hub:
        front += ["base_model:", *(f"- {json.dumps(name)}" for name in dict.fromkeys(hub))]
    dtypes = sorted({dtype_name(spec.dtype) for spec in specs.values()})
    formula = _FORMULAS[recipe.method]
    if recipe.base is not None and recipe.method == "multislerp":
        formula += ", applied to x_i - base; the base is added"
    rows = "\n".join(_row(name, model, recipe) for name, model in models.items())
    front_matter, recipe_text = "\n".join(front), indent(recipe.text.strip("\n"), "    ")
    return f"""{front_matter}
---

# A merged embedding model

`lastword merge` made this model from the models below with the method `{recipe.method}`, tensor by tensor:

    {formula}

Inner products and sums are in float64, and each value is rounded once, to {" and ".join(dtypes)}.
Configuration, tokenizer and prompts come from `{recipe.donor}`. The licences of the merged
models apply to this model.

| model | revision | weight | hash of its weights |
|---|---|---|---|
{rows}

Hash of this model's weights: `{fingerprint}`. `lastword info` shows this hash as "weights". It covers
the name, dtype and shape of every tensor except `lm_head.weight`, and up to three sampled blocks of its data.

## Recipe

{recipe_text}
"""


def _row(name: str, model: StoredModel, recipe: Recipe) -> str:
    roles = [
        f"{w:g}" for each, w in zip(recipe.models, recipe.weights, strict=False) if each == name
    ]
    if recipe.method == "slerp":
        roles = [f"t = {i}" for i, each in enumerate(recipe.models) if each == name]
    if name == recipe.base:
        roles.append("base")
    shown = name.replace("|", "\\|")
    revision = model.files.revision or "a folder"
    return f"| {shown} | {revision} | {', '.join(roles)} | `{model.fingerprint}` |"
