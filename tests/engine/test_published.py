"""Recognising published models: by hub id or by a folder with the model's name, and by nothing else."""

from pathlib import Path

import pytest

from lastword.errors import ConfigError
from lastword.model_info import find_known_name, find_published

FACTS = {"Qwen/Qwen3-Embedding-0.6B": 1, "a/b": 2}


@pytest.mark.parametrize(
    ("model", "fact"),
    [
        pytest.param("Qwen/Qwen3-Embedding-0.6B", 1, id="hub id"),
        pytest.param("qwen/qwen3-embedding-0.6b", 1, id="hub id, other case"),
        pytest.param("./Qwen3-Embedding-0.6B", 1, id="folder"),
        pytest.param("models/qwen3-embedding-0.6b/", 1, id="folder, other case, slash"),
        pytest.param("other/b", None, id="another owner's"),
        pytest.param("./b", None, id="no such folder"),
        pytest.param("models", None, id="another folder"),
        pytest.param("~nosuchuser/b", None, id="a user who is not known"),
    ],
)
def test_published(model: str, fact: int | None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Qwen3-Embedding-0.6B").mkdir()
    Path("models/qwen3-embedding-0.6b").mkdir(parents=True)
    assert (find_known_name(model, FACTS) == model) == (fact is None or model in FACTS)
    if fact is not None:
        assert find_published(model, FACTS, "card", "no table is known") == fact
        return
    with pytest.raises(ConfigError) as caught:
        find_published(model, FACTS, "card", "no table is known")
    raised = caught.value
    assert (raised.where, raised.what, raised.got) == ("card", "no table is known", repr(model))
    assert raised.expected == "one of: Qwen/Qwen3-Embedding-0.6B, a/b"
    assert raised.remedy == "Give the published model's id with known_as."


def test_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert find_published(".", FACTS, "card", "no table is known") == 2
