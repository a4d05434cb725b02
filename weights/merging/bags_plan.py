"""Write a plan of bags: the rows on which each model is to be trained, and the recipe that merges the models.

`plan.json` describes the bags, `plan.rows/BAG/DATASET.txt` has one row id per line, and `plan.merge.yaml` is the
recipe. The same settings, names and data give the same bytes on every machine, whatever the order of the datasets.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from lastword.errors import InputError
from lastword.weights.files.atomic import name_write_errors, replace_file, replace_folder
from lastword.weights.merging.bags import REST, Bag, Dataset, choose_rows, format_percent, row_ids

_FORMAT = 1  # raise this when a seed gives different rows than before


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """The settings of a plan, apart from the data."""

    seed: int
    bags: Sequence[Bag]
    old_ratio: Fraction  # the percentage of each old dataset that every bag gets
    id_field: str | None  # the field of a row that is its id; None for row numbers
    by_size: bool  # whether a model's merge weight is its number of rows; else it is 1
    into: str | None  # an existing model to merge the new ones into


def write_plan(
    out: Path,
    spec: PlanSpec,
    datasets: Sequence[Dataset],
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, Any]:
    """Draw every bag and write the plan, its rows and its recipe.

    Args:
        out: the plan's `.json` file; it must not exist.
        spec: the plan's settings.
        datasets: the datasets, in any order.
        progress: called with the number of rows written since the last call.

    Returns:
        The content of the `.json` file.

    Raises:
        InputError: `out` does not end in `.json`, a file exists already or cannot be written, a bag holds no rows, or a
            row has no id.
    """
    if out.suffix != ".json":
        got, expected = out.suffix or "no ending", "a name that ends in .json"
        raise InputError(str(out), "wrong name", got=got, expected=expected)
    rows, recipe = out.with_suffix(".rows"), out.with_suffix(".merge.yaml")
    for path in (out, rows, recipe):
        if path.exists() or path.is_symlink():
            raise InputError(
                str(path), "exists already", expected="a new plan", remedy="Name another one."
            )
    ordered = sorted(datasets, key=lambda dataset: dataset.name)
    with name_write_errors(out), ExitStack() as places:
        # Files are completed in reverse order: the plan comes last, and shows that all others are complete.
        out_file, recipe_file = (places.enter_context(replace_file(path)) for path in (out, recipe))
        folder = places.enter_context(replace_folder(rows))
        bags = [_bag(spec, bag, ordered, folder, rows.name, progress) for bag in spec.bags]
        plan = _plan_content(spec, ordered, bags, recipe.name)
        recipe_file.write(_recipe(spec, ordered, bags).encode())
        out_file.write(f"{json.dumps(plan, indent=2)}\n".encode())
    return plan


def _bag(
    spec: PlanSpec,
    bag: Bag,
    datasets: Sequence[Dataset],
    folder: Path,
    folder_name: str,
    progress: Callable[[int], object],
) -> dict[str, Any]:
    """Write a bag's row ids, one file per dataset; return the bag's entry in the plan."""
    (folder / bag.name).mkdir(parents=True)
    parts: dict[str, dict[str, Any]] = {}
    for dataset in datasets:
        count, digest = 0, hashlib.sha256()
        rows = choose_rows(spec.seed, spec.bags, bag, dataset, spec.old_ratio)
        with (folder / bag.name / f"{dataset.name}.txt").open("wb", buffering=1 << 20) as file:
            for each in row_ids(dataset, rows, spec.id_field):
                line = f"{each}\n".encode()
                file.write(line)
                digest.update(line)
                count += 1
                if count % 100_000 == 0:
                    progress(100_000)
        progress(count % 100_000)
        file_name = f"{folder_name}/{bag.name}/{dataset.name}.txt"
        parts[dataset.name] = {"rows": count, "ids": file_name, "sha256": digest.hexdigest()}
    total = sum(part["rows"] for part in parts.values())
    if not total:
        raise InputError(f"bag {bag.name}", "holds no rows", remedy="Choose a larger ratio.")
    ratio = REST if bag.ratio is None else format_percent(bag.ratio)
    return {"name": bag.name, "ratio": ratio, "rows": total, "datasets": parts}


def _plan_content(
    spec: PlanSpec, datasets: Sequence[Dataset], bags: list[dict[str, Any]], recipe: str
) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "seed": spec.seed,
        "ids": "row numbers from 0" if spec.id_field is None else f"field {spec.id_field}",
        "old_ratio": format_percent(spec.old_ratio)
        if [each for each in datasets if each.old]
        else None,
        "datasets": {
            each.name: {"rows": each.rows, "sha256": each.sha256, "old": each.old}
            for each in datasets
        },
        "bags": bags,
        "merge": recipe,
    }


def _recipe(spec: PlanSpec, datasets: Sequence[Dataset], bags: list[dict[str, Any]]) -> str:
    """Return the recipe, which expects the model of each bag in a folder with the bag's name."""
    weights = {f"./{bag['name']}": bag["rows"] if spec.by_size else 1 for bag in bags}
    if spec.into is not None:
        old = sum(each.rows for each in datasets if each.old)
        weights = {spec.into: old if spec.by_size else 1, **weights}
    lines = ["# Train a model on each bag of the plan, put it in the folder named here, then:"]
    lines += ["#   lastword merge THIS_FILE ./merged", "models:"]
    for name, weight in weights.items():
        lines += [
            f"  - model: {json.dumps(name, ensure_ascii=False)}",
            f"    parameters: {{weight: {weight}}}",
        ]
    return "\n".join([*lines, "merge_method: multislerp", "dtype: float32", ""])
