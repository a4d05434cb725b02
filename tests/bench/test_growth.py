"""The growth benchmark's counts are right, in the caller's process and in a separate one."""

import json

import pytest

from lastword.bench import growth


def test_lines_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["--counts", "2", "6", "--rounds", "1"])
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(first)["run"]["dtype"] == "float32"
    rows = json.loads(last)
    assert [row["texts"] for row in rows] == [2, 6]
    assert rows[0]["tokens"] < rows[1]["tokens"]
    assert all(row["tokens_per_second"] > 0 and row["peak_bytes"] > 50e6 for row in rows)
    assert len(lines) == 4
    assert "below the fastest" in lines[-1]


def test_one_device_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.main(["--device", "cpu,cpu"])
    assert "--device: unknown; got 'cpu,cpu', expected 'cpu'" in capsys.readouterr().err


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.main(["--model", "/no/such", "--counts", "2", "--rounds", "1"])
    assert "error: /no/such: no such folder" in capsys.readouterr().err.splitlines()[-1]
