"""Folders that hold an adapter, or the model in a folder below: refused before anything is missed, wherever opened."""

import shutil
from pathlib import Path

import pytest
from helpers.messages import refusal
from helpers.small_models import change_file, model, recipe_text

from lastword import Embedder
from lastword.cli.main import main
from lastword.errors import ConfigError, WeightsError
from lastword.weights import locate

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = {"base_model_name_or_path": "Qwen/Qwen3-Embedding-0.6B", "peft_type": "LORA"}
WHOLE = {
    "what": "an adapter beside the weights",
    "expected": "a model without one",
}
ONLY = {
    "what": "only an adapter, not a whole model",
    "expected": "a whole model",
}
OF_BASE = 'an adapter of "Qwen/Qwen3-Embedding-0.6B"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(model(tmp_path / "model", num_hidden_layers=1))


@pytest.mark.parametrize(
    ("files", "named", "got"),
    [
        ({CONFIG: BASE, WEIGHTS: {}}, CONFIG, OF_BASE),
        ({CONFIG: {"peft_type": "LORA"}}, CONFIG, None),
        ({CONFIG: {}}, CONFIG, None),
        ({WEIGHTS: {}}, WEIGHTS, None),
        ({"adapter_model.bin": {}}, "adapter_model.bin", None),
    ],
    ids=range(5),
)
def test_an_adapter_beside_whole_weights(folder, files, named, got):
    for name, values in files.items():
        change_file(folder, name, values)
    remedy = "Move the adapter's files to a folder DIR of their own, and merge it: "
    remedy += f"lastword convert {folder} OUT --adapter DIR."
    with refusal(ConfigError, where=str(folder / named), got=got, remedy=remedy, **WHOLE):
        locate(folder)
    with refusal(ConfigError, where=str(folder / named)):
        Embedder(folder, device="cpu")


@pytest.mark.parametrize("weights", [True, False])
def test_a_folder_with_only_an_adapter(tmp_path, weights):
    folder = tmp_path / "adapter"
    path = change_file(folder, CONFIG, BASE)
    change_file(folder, "tokenizer_config.json", {})
    command = "lastword convert Qwen/Qwen3-Embedding-0.6B OUT --adapter"
    remedy = f"Download it with {WEIGHTS} into a folder DIR, and merge it: {command} DIR."
    if weights:
        change_file(folder, WEIGHTS, {})
        remedy = f"Merge it: {command} {folder}."
    with refusal(ConfigError, where=str(path), got=OF_BASE, remedy=remedy, **ONLY):
        locate(folder)


def test_a_link_that_leads_nowhere_is_no_absent_adapter(folder):
    (folder / CONFIG).symlink_to(folder / "gone")
    with refusal(WeightsError, where=str(folder / CONFIG)):
        locate(folder)


def test_merge_and_convert_refuse_it_too(folder, tmp_path, capsys):
    change_file(folder, CONFIG, BASE)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text([folder, folder], [1, 1], "linear"))
    for command in (
        ["merge", str(recipe), str(tmp_path / "out")],
        ["convert", str(folder), str(tmp_path / "out")],
    ):
        assert main(command) == 2
        assert "an adapter beside the weights" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def below(folder: Path, place: str) -> Path:
    """Move the model itself to a folder of its own, as sentence-transformers 0 and 1 saved it."""
    (folder / place).mkdir()
    for file in [path for path in folder.iterdir() if path.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            shutil.move(file, folder / place / file.name)
    kinds = (("Transformer", place), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    return change_file(folder, "modules.json", modules)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["0_Transformer", "bert"])
def test_a_model_in_a_folder_below_says_what_to_do(folder, tmp_path, place):
    library = pytest.importorskip("sentence_transformers")
    before = Embedder(folder, device="cpu").encode("a text")
    path = below(folder, place)
    with refusal(
        ConfigError,
        where=f"{path}: the Transformer's path",
        what="a folder of its own is not supported",
        got=f'"{place}"',
        expected='""',
        remedy='Move the files of that folder to the model\'s folder and set this path to "". '
        "Opening the model with sentence-transformers and saving it does the same.",
    ):
        locate(folder)
    saved = str(tmp_path / "saved")
    library.SentenceTransformer(str(folder), device="cpu").save_pretrained(saved)
    assert (Embedder(saved, device="cpu").encode("a text") - before).abs().max() <= 1e-6
