"""What may be set on a model after it is opened, and where its own limits are said to come from."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lastword import ConfigError, Embedder
from lastword.model_info import OpenedModel


@pytest.fixture
def opened(tiny_checkpoint: Path) -> OpenedModel:
    return OpenedModel(tiny_checkpoint, device="cpu")


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def test_truncate_dim_is_in_force_when_set(tiny_checkpoint: Path) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    expected, space = model.encode("a text", truncate_dim=24), model.space_fingerprint(24)
    model.truncate_dim = 24
    assert torch.equal(model.encode("a text"), expected)
    assert (model.dim, model.get_embedding_dimension(), model.truncate_dim) == (24, 24, 24)
    assert model.space_fingerprint() == space
    assert model.encode("a text", truncate_dim=32).shape == (32,)
    model.truncate_dim = None
    assert model.encode("a text").shape == (64,)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("truncate_dim", 65, "truncate_dim: out of range; got 65, expected 1 to 64"),
        ("truncate_dim", 8.0, "truncate_dim: out of range; got 8.0"),
        ("max_length", 10**6, "max_length: out of range; got 1000000, expected 2 to"),
        ("max_length", 16.0, "max_length: out of range; got 16.0"),
        ("max_seq_length", 0, "max_length: out of range; got 0"),
    ],
)
def test_what_is_set_is_checked(
    name: str, value: object, message: str, opened: OpenedModel
) -> None:
    before = getattr(opened, name)
    with pytest.raises(ConfigError, match=message):
        setattr(opened, name, value)
    assert getattr(opened, name) == before


def test_max_length_goes_back_to_the_models_own(opened: OpenedModel) -> None:
    own = opened.max_length
    opened.max_length = 16
    assert opened.max_seq_length == 16
    opened.max_length = None
    assert opened.max_length == own


def test_dim_follows(opened: OpenedModel) -> None:
    with pytest.raises(AttributeError):
        opened.dim = 8


def test_an_empty_name_is_no_model() -> None:
    with pytest.raises(ConfigError, match="model: the name is empty"):
        OpenedModel("")


def test_a_limit_of_the_models_own_names_its_file(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 99_999}))
    with pytest.raises(
        ConfigError, match=r"got 99999, expected 2 to \d+ tokens. Set max_length."
    ) as caught:
        OpenedModel(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "sentence_bert_config.json" in str(caught.value)
    assert OpenedModel(folder, max_length=16).max_length == 16


def test_normalized_vectors_are_of_a_space_of_their_own(folder: Path, opened: OpenedModel) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    states = OpenedModel(folder)
    for known in (OpenedModel.space_fingerprint, OpenedModel.run_fingerprint):
        assert known(opened, normalize_embeddings=True) == known(opened)
        assert known(states, normalize_embeddings=True) != known(states)
        cut = known(states, truncate_dim=8)
        assert known(states, truncate_dim=8, normalize_embeddings=True) == cut, "as it is"


def test_a_prompt_of_the_checkpoint_is_text(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": {"query": "\ud800"}}))
    with pytest.raises(ConfigError, match="prompt: not valid Unicode"):
        OpenedModel(folder).resolve_prompt("query")
