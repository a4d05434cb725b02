"""The benchmarks on a GPU: every implementation that is there passes the gate, and figures are possible ones."""

import json
from pathlib import Path

import pytest

from lastword.cli.main import main


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernels_on_the_gpu(dtype: str, tmp_path: Path, capfd) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--model", "0.6B", "--tokens", "1024", "--rep-ms", "10", "--dtype", dtype]
    beside = ["--beside", "eager", "sdpa-flash", "varlen"]
    assert main(["bench", "kernels", *words, *beside, "--json", str(out)]) == 0
    assert "On a CPU" not in capfd.readouterr().out
    _, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert all(row["right"] for row in rows if row["by"] in ("lastword", "eager"))
    assert all(row["right"] is not False for row in rows), "a baseline is laid out wrongly"
    if dtype == "bfloat16":
        by = {row["by"] for row in rows if row["right"]}
        assert {"sdpa-flash", "varlen"} <= by
    assert all(0 < row["of_peak"] < 1.5 for row in rows if row["timing"] is not None)


def test_model_on_the_gpu(tmp_path: Path) -> None:
    out = tmp_path / "model.jsonl"
    words = ["--model", "tiny", "--tokens", "4096", "--lengths", "32", "512", "--rounds", "1"]
    assert main(["bench", "model", *words, "--json", str(out)]) == 0
    head, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert head["run"]["dtype"] == "bfloat16"
    assert all(row["peak_bytes"] > 0 for row in rows[:2])
