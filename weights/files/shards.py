"""Find the safetensors files of a checkpoint: one file, or shards that are checked against their index."""

import re
from pathlib import Path

from lastword.errors import WeightsError, list_some
from lastword.weights.files.header import TensorInfo, read_header
from lastword.weights.files.reading import MAX_INDEX_BYTES, has_file
from lastword.weights.json_fields import read_object, show_value

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that contain a model's weights, and check that each of them exists.

    Raises:
        WeightsError: the folder has no weights, or has them only in other formats; it has both a single file and
            shards; a shard or the index is missing; or a shard is not in the index.
    """
    single, index = folder / SINGLE, folder / INDEX
    shards = {
        file.name for file in folder.glob("model-*.safetensors") if _SHARD.fullmatch(file.name)
    }
    if has_file(index):
        listed = set(_weight_map(index).values())
        if has_file(single) and listed != {SINGLE}:
            remedy = "Remove the one that does not belong to the model."
            raise WeightsError(str(folder), f"both {SINGLE} and {INDEX}", remedy=remedy)
        missing = {name for name in listed if not has_file(folder / name)}
        if missing:
            raise WeightsError(
                str(folder),
                f"{len(missing)} of {len(listed)} shards missing: {list_some(missing)}",
                remedy="The download is incomplete: fetch the model again.",
            )
        if shards - listed:
            what = f"does not list existing shards: {list_some(shards - listed)}"
            raise WeightsError(str(index), what)
        return [folder / name for name in sorted(listed)]
    if has_file(single):
        if shards:
            what = f"both {SINGLE} and shards: {list_some(shards)}"
            raise WeightsError(str(folder), what, remedy="Remove one set.")
        return [single]
    raise _no_weights(folder, shards)


def _no_weights(folder: Path, shards: set[str]) -> WeightsError:
    if shards:
        what = f"shards without {INDEX}: {list_some(shards)}"
        return WeightsError(str(folder), what, remedy="Fetch the model again.")
    others = [file.name for file in folder.glob("*") if file.suffix in _WEIGHTS]
    if others:
        remedy = f"Save the model as {SINGLE}."
        return WeightsError(str(folder), f"no {SINGLE}", got=list_some(others), remedy=remedy)
    return WeightsError(str(folder), "no weights", expected=f"{SINGLE} or {INDEX}")


def _weight_map(index: Path) -> dict[str, str]:
    """Read the index's map from tensor names to file names; a file name must not contain a path."""
    weight_map = read_object(index, WeightsError, limit=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        got, expected = show_value(weight_map), "an object of tensor names and file names"
        raise WeightsError(f"{index}: weight_map", "wrong value", got=got, expected=expected)
    for name, file in weight_map.items():
        plain = isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file)
        if not plain or file.startswith("."):
            raise WeightsError(
                f"{index}: tensor {show_value(name)}",
                "wrong place",
                got=show_value(file),
                expected="the name of a file in this folder",
            )
    return weight_map


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Read every header of a checkpoint and return its tensors by their names in the files.

    Raises:
        WeightsError: a file is damaged, a tensor is in two shards, or the index contradicts the shards.
    """
    files = weight_files(folder)
    found: dict[str, TensorInfo] = {}
    for file in files:
        tensors = read_header(file)
        twice = found.keys() & tensors.keys()
        if twice:
            other = list_some({found[name].file.name for name in twice})
            raise WeightsError(
                str(file), f"contains tensors that are also in {other}: {list_some(twice)}"
            )
        found.update(tensors)
    if has_file(folder / INDEX):
        _check_index(folder / INDEX, found)
    return found


def _check_index(index: Path, found: dict[str, TensorInfo]) -> None:
    weight_map = _weight_map(index)
    unlisted = found.keys() - weight_map.keys()
    if unlisted:
        raise WeightsError(
            str(index), f"does not list tensors of the shards: {list_some(unlisted)}"
        )
    for name, file in weight_map.items():
        where = f"{index}: tensor {show_value(name)}"
        if name not in found:
            raise WeightsError(where, f"not in {file}, nor in any shard")
        if found[name].file.name != file:
            what = f"listed in {file}, found in {found[name].file.name}"
            raise WeightsError(where, what)
