"""Settings that can be changed after a model is opened, and errors that name the source of its limits."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from lastword import ConfigError, Embedder
from lastword.model_info import ModelInfo
from lastword.runtime.runner import InProcess
from lastword.weights import loaded_bytes, locate, read_config


@pytest.fixture
def info(tiny_checkpoint: Path) -> ModelInfo:
    return ModelInfo(tiny_checkpoint, device="cpu")


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def test_truncate_dim_takes_effect_when_set(tiny_checkpoint: Path) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    expected, space = model.encode("a text", truncate_dim=24), model.info.space_fingerprint(24)
    model.truncate_dim = 24
    assert torch.equal(model.encode("a text"), expected)
    assert (model.dim, model.get_embedding_dimension(), model.truncate_dim) == (24, 24, 24)
    assert model.info.space_fingerprint() == space
    assert model.encode("a text", truncate_dim=32).shape == (32,)
    model.truncate_dim = None
    assert model.encode("a text").shape == (64,)


@pytest.mark.parametrize(
    ("name", "value", "where", "what", "expected"),
    [
        ("truncate_dim", 65, "truncate_dim", "out of range", "1 to 64"),
        ("truncate_dim", 8.0, "truncate_dim", "not a whole number", "1 to 64"),
        ("truncate_dim", "x", "truncate_dim", "not a whole number", "1 to 64"),
        ("max_length", 10**6, "max_length", "out of range", "2 to 4096 tokens"),
        ("max_length", 16.0, "max_length", "not a whole number", "2 to 4096 tokens"),
        ("max_seq_length", 0, "max_length", "out of range", "2 to 4096 tokens"),
    ],
)
def test_new_settings_are_checked(
    name: str, value: object, where: str, what: str, expected: str, tiny_checkpoint: Path
) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    before = getattr(model, name)
    with pytest.raises(ConfigError) as caught:
        setattr(model, name, value)
    error = caught.value
    assert (error.where, error.what, error.got) == (where, what, repr(value))
    assert error.expected == expected
    assert getattr(model, name) == before


def test_max_length_returns_to_the_models_default(tiny_checkpoint: Path) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    own = model.max_length
    model.max_length = 16
    assert model.max_seq_length == model.info.max_length == 16
    model.max_seq_length = None
    assert model.max_length == own


def test_dim_follows(info: ModelInfo) -> None:
    with pytest.raises(AttributeError):
        info.dim = 8


def test_an_empty_name_is_no_model() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelInfo("")
    assert (caught.value.where, caught.value.what) == ("model", "the name is empty")


def test_an_error_about_the_models_limit_names_its_file(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 99_999}))
    with pytest.raises(ConfigError) as caught:
        ModelInfo(folder)
    error = caught.value
    assert error.where.startswith(f"{folder}: ")
    assert "sentence_bert_config.json" in error.where
    assert (error.got, error.expected) == ("99999", "2 to 4096 tokens")
    assert error.remedy == "Set max_length."
    assert ModelInfo(folder, max_length=16).max_length == 16


def test_normalized_vectors_have_a_space_of_their_own(folder: Path, info: ModelInfo) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    states = ModelInfo(folder)
    for known in (ModelInfo.space_fingerprint, ModelInfo.run_fingerprint):
        assert known(info, normalize_embeddings=True) == known(info)
        assert known(states, normalize_embeddings=True) != known(states)
        cut = known(states, truncate_dim=8)
        assert known(states, truncate_dim=8, normalize_embeddings=True) == cut, "as it is"


def test_a_prompt_of_the_checkpoint_is_text(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": {"query": "\ud800"}}))
    with pytest.raises(ConfigError) as caught:
        ModelInfo(folder).resolve_prompt("query")
    assert (caught.value.where, caught.value.what) == ("prompt", "not valid Unicode")


README = Path(__file__).resolve().parents[2] / "README.md"
ROW = re.compile(
    r"^\| `Embedder\((.*?)\)`.*\| ([\d.]+) (GB|MB) \(([\d.]+) \3\) \| ([\d.]+) \3 \|$", re.MULTILINE
)


def test_the_memory_of_the_weights_is_what_the_readme_says() -> None:
    rows = {name.strip('"'): (unit, sizes) for name, *sizes, unit in (
        (found[1], found[2], found[4], found[5], found[3]) for found in ROW.finditer(README.read_text("utf-8"))
    )}  # fmt: skip
    configs = {"": read_config(locate(None).folder)}
    if data := os.environ.get("LASTWORD_TEST_DATA"):
        for name in ("Qwen3-Embedding-0.6B", "Qwen3-Embedding-4B"):
            configs[f"Qwen/{name}"] = read_config(Path(data) / "tokenizers" / name)
    for name, config in configs.items():
        unit, sizes = rows[name]
        layers = range(config.num_hidden_layers)
        found = (
            loaded_bytes(config, 4, table=False),
            loaded_bytes(config, 4, table=False, quantized=layers),
            loaded_bytes(config, 2, table=True),
        )
        scale, digits = {"GB": (1e9, 1), "MB": (1e6, 0)}[unit]
        assert [f"{size / scale:.{digits}f}" for size in found] == list(sizes), name


def test_the_memory_of_the_weights_is_that_of_the_loaded_model(tiny_checkpoint: Path) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    runner = model.loop.runner
    assert isinstance(runner, InProcess)
    held: dict[int, torch.Tensor] = {}

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            held[id(value)] = value
        elif isinstance(value, tuple):
            for each in value:
                add(each)
        elif type(value).__module__.startswith("lastword.kernels"):
            for each in vars(value).values():
                add(each)

    for part in (*runner.model.layers, runner.model):
        for name, value in vars(part).items():
            if name not in ("embedding", "inv_freq"):
                add(value)
    size = sum(each.numel() * each.element_size() for each in held.values())
    assert size == model.info.weights_bytes
