"""Refuse adapters such as LoRA: changes to a model's weights that are stored in separate files."""

from pathlib import Path

from lastword.errors import ConfigError
from lastword.weights.files.reading import has_file
from lastword.weights.json_fields import Fields, read_optional_object, show_value

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter: other libraries would apply it, so our vectors would differ.

    Raises:
        WeightsError: the adapter's config cannot be read.
        ConfigError: there is an adapter.
    """
    path = folder / ADAPTER_CONFIG
    values = read_optional_object(path)
    found = [name for name in _WEIGHTS if has_file(folder / name)]
    if values is None and not found:
        return
    base = None if values is None else Fields(values, str(path)).text("base_model_name_or_path")
    whole = has_file(folder / "config.json")
    remedy = "Merge it into the weights with peft (merge_and_unload) and save the result"
    raise ConfigError(
        str(path if values is not None else folder / found[0]),
        "an adapter beside the weights" if whole else "only an adapter, not a whole model",
        got=None if base is None else f"an adapter of {show_value(base)}",
        expected="a model without one" if whole else "a whole model",
        remedy=f"{remedy}{', or remove its files' if whole else ''}.",
    )
