"""What other programs read from a job's output: the lines that README shows, one by one."""

import json
import re
from pathlib import Path

import pytest
import torch

from lastword import Embedder
from lastword.cli.main import main

pytest.importorskip("pyarrow.parquet")

TEXTS = [f"text {i} of {'many ' * (i % 5)}words" for i in range(50)]
README = Path(__file__).parents[3] / "engine" / "bulk" / "README.md"


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    return Embedder().encode(TEXTS)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        main(
            [
                "embed",
                "in.jsonl",
                "--id-field",
                "id",
                "--unit-records",
                "20",
                "--quiet",
                "-o",
                "vectors/",
            ]
        )
        == 0
    )


def shown(library: str) -> str:
    """Return the Python lines under a library's name in README."""
    found = re.search(
        rf"\n# {re.escape(library)}.*?\n(.*?)(?=\n# |\n```)", README.read_text(), re.DOTALL
    )
    assert found is not None, library
    return found[1]


@pytest.mark.parametrize(
    "library", ["pyarrow", "duckdb", "polars", "datasets", "lancedb", "usearch", "faiss"]
)
@pytest.mark.filterwarnings("default")
def test_readme_lines(library: str, job: None, vectors: torch.Tensor) -> None:
    pytest.importorskip(library)
    names: dict = {}
    exec(shown(library), names)
    found = names["found"]
    if library in ("lancedb", "usearch", "faiss"):
        assert found == [7, *found[1:]]
        assert len(found) == 3
        return
    assert sorted(found) == list(range(50))
    for number, vector in found.items():
        assert (torch.tensor(vector) - vectors[number]).abs().max() < 1e-6
