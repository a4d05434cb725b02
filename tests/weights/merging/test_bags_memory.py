"""The memory for planning bags does not depend on the number of rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import peak_anonymous


def peak_of(rows: int, folder: Path) -> int:
    """Return the peak memory in bytes of planning over `rows` rows."""
    text = b'{"text": "a row of some length", "id": 123456}\n'
    with (folder / f"{rows}.jsonl").open("wb") as file:
        for _ in range(rows // 10_000):
            file.write(text * 10_000)
    words = ["bags", f"{rows}.jsonl", "--ratios", "80,rest", "--seed", "1", "-o", f"p{rows}.json"]
    command = [sys.executable, "-m", "lastword.cli.main", *words, "--quiet"]
    with subprocess.Popen(command, cwd=folder) as process:
        peak = peak_anonymous(process)
    assert process.returncode == 0
    plan = json.loads((folder / f"p{rows}.json").read_text())
    assert [bag["rows"] for bag in plan["bags"]] == [rows * 8 // 10, rows * 2 // 10]
    return peak


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("rows", [500_000, pytest.param(10_000_000, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_rows(tmp_path, rows):
    assert peak_of(rows, tmp_path) < peak_of(10_000, tmp_path) + 8_000_000
