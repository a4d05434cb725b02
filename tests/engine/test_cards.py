"""Whose card is meant: a hub id, a folder that bears the model's name, and nothing else."""

from pathlib import Path

import pytest

from lastword.cards import find_card, known_name
from lastword.errors import ConfigError

CARDS = {"Qwen/Qwen3-Embedding-0.6B": 1, "a/b": 2}


@pytest.mark.parametrize(
    ("model", "card"),
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
def test_find_card(model: str, card: int | None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Qwen3-Embedding-0.6B").mkdir()
    Path("models/qwen3-embedding-0.6b").mkdir(parents=True)
    assert (known_name(model, CARDS) == model) == (card is None or model in CARDS)
    if card is not None:
        assert find_card(model, CARDS, "card: no table") == card
        return
    with pytest.raises(ConfigError, match=r"^card: no table is known for .* a/b\. .* with --as"):
        find_card(model, CARDS, "card: no table")


def test_the_folder_one_stands_in(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert find_card(".", CARDS, "card: no table") == 2
