"""The grid of equal lengths: its cells, a dry run of a few, and what makes it fail."""

import json
from pathlib import Path

import pytest

from lastword.bench.peers import grid
from lastword.cli.main import main


def test_cells() -> None:
    cells = grid.cells()
    assert {length for length, _ in cells} == set(grid.LENGTHS) >= {1, 4000}
    assert {count for _, count in cells} == set(grid.COUNTS) >= {1, 512}
    assert all(length * count <= grid.MOST_TOKENS for length, count in cells)
    assert len(set(cells)) == len(cells)


def row(length: int, count: int, ours: float, theirs: float, differs: str | None = None) -> dict:
    return grid._row(
        (length, count), "fp32", {grid.OURS: [ours] * 3, grid.THEIRS: [theirs] * 3}, differs
    )


def test_a_slower_cell_is_marked() -> None:
    rows = [row(1, 1, 1.0, 2.0), row(4, 16, 2.0, 1.0), row(4, 1, 1.0, 1.0, "differ by 1.00e-03")]
    assert [each["slower"] for each in rows] == [False, True, False]
    lines = grid.grid_table(rows, "fp32").splitlines()
    assert "2.00" in lines[3]
    assert "<" not in lines[3]
    assert "1.00" in lines[4]
    assert "0.50<" in lines[4]
    assert lines[-2:] == [
        "1 texts of 4 tokens: vectors differ by 1.00e-03",
        "lastword is slower in 1 of 3 cells",
    ]


def test_dry_run(tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(grid, "LENGTHS", (1, 40))
    monkeypatch.setattr(grid, "COUNTS", (1, 3))
    words = ["bench", "peers", "--grid", "--rounds", "2", "--threads", "1"]
    status = main([*words, "--model", str(tiny_checkpoint)])
    out, err = capfd.readouterr()
    result = json.loads(out.splitlines()[-1])
    rows = result["rows"]
    assert [(each["tokens"], each["texts"]) for each in rows] == [(1, 1), (1, 3), (40, 1), (40, 3)]
    assert all(each["differs"] is None for each in rows)
    assert all(len(times) == 2 for each in rows for times in each["round_seconds"].values())
    assert status == (1 if any(each["speedup"] < 1 for each in rows) else 0)
    assert "round 1/2; about" in err
    monkeypatch.setattr(grid, "disagreement", lambda *_: "differ")
    monkeypatch.setattr(grid, "COUNTS", (1,))
    assert main([*words, "--json", "--model", str(tiny_checkpoint)]) == 1
    assert len(capfd.readouterr().out.splitlines()) == 1
