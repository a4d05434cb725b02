"""The benchmark of corpus jobs: that it compares before it times, and that the simulated fleet adds up."""

import json
import math
from pathlib import Path

import pytest

from lastword.bench.bulk import bulk_benchmark, fleet
from lastword.cli.main import main

pytest.importorskip("pyarrow.parquet")


def test_encode_and_resume(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = tmp_path / "result.jsonl"
    options = ["--rows", "400", "--quick", "--scenarios", "encode", "resume", "--json", str(path)]
    assert main(["bench", "bulk", *options]) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("way") or line["case"] for line in lines] == [
        "encode",
        "job",
        "whole",
        "half",
        "nothing",
    ]
    assert lines[1]["job_is_faster"] == 1
    assert all(line["seconds"] > 0 for line in lines)
    assert "texts/s" in capfd.readouterr().out


def test_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path = tmp_path / "result.jsonl"
    options = ["--rows", "400", "--quick", "--scenarios", "ray", "--json", str(path)]
    assert main(["bench", "bulk", *options]) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["way"] for line in lines] == ["local", "ray"]
    assert all(0 < line["seconds_per_unit"] < line["wall"] for line in lines)


def test_other_vectors_are_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bulk_benchmark, "_TOLERANCE", -1.0)
    assert main(["bench", "bulk", "--rows", "40", "--quick", "--scenarios", "encode"]) == 2
    assert "job: other vectors than encode" in capfd.readouterr().err


@pytest.mark.parametrize("shared", [True, False])
def test_a_fleet_without_trouble_takes_its_share(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_SLOW", 0.0), ("_SPREAD", 0.0), ("_FAILURE_HOURS", 1e12)):
        monkeypatch.setattr(fleet, name, value)
    found = fleet.simulate(8, 804, 0.5, shared=shared, seed=1)
    assert math.isclose(found.hours, 0.5 * 101)
    assert found.repeated == 0


def test_slow_gpus_hurt_fixed_shares_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_SLOW", 0.25)
    monkeypatch.setattr(fleet, "_FAILURE_HOURS", 1e12)
    free, fixed = (
        fleet.simulate(64, 6400, 0.1, shared=shared, seed=3).hours for shared in (True, False)
    )
    assert free < 13
    assert fixed > 19


def test_failures_repeat_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_FAILURE_HOURS", 20.0)
    assert fleet.simulate(16, 1600, 1.0, shared=True, seed=5).repeated > 10
