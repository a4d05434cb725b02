"""Large jobs, in `make soak`: planning ten million rows, and memory that does not grow with the number of rows."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lastword.bulk.plan import Plan
from lastword.cli.read import Fields, Source

pytest.importorskip("pyarrow.parquet")

SETTINGS = {"delimiter": None, "on_error": "skip"}
# A runner that computes nothing: reading, tokenising, packing and writing remain. Prints the peak of memory.
FAKE = """
import sys
import torch
from lastword.bench.memory import peak_bytes
from lastword.cli.main import main
from lastword.runtime.runner import InProcess

def start(self, task, forest):
    vectors = torch.zeros(len(forest.final_rows), self.model.config.hidden_size)
    vectors[:, 0] = 1
    return lambda: vectors

InProcess.start = start
status = main(["embed", sys.argv[1], "-o", sys.argv[2], "--quiet", "--unit-records", "5000"])
print(peak_bytes())
sys.exit(status)
"""


@pytest.mark.soak
@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
def test_ten_million_rows_are_planned_in_30_seconds(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    line = {"txt": "text %d\n", "jsonl": '{"text": "text %d"}\n', "csv": "text %d,x\n"}[ending]
    with path.open("w") as file:
        file.write("text,more\n" if ending == "csv" else "")
        for first in range(0, 10_000_000, 100_000):
            file.write("".join(line % n for n in range(first, first + 100_000)))
    began = time.monotonic()
    plan = Plan.make([Source(str(path), ending)], SETTINGS, 50_000, Fields("text"))
    assert time.monotonic() - began < 30
    assert sum(unit.records for unit in plan.units) == 10_000_000


@pytest.mark.soak
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for rows in (10_000, 1_000_000):
        path = tmp_path / f"{rows}.txt"
        with path.open("w") as file:
            file.writelines(f"row {number} of a corpus\n" for number in range(rows))
        command = [sys.executable, "-c", FAKE, str(path), f"{tmp_path}/{rows}/"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3000)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 30e6, peaks
