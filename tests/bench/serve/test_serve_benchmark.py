"""The scenarios on a small scale, on a real server: answers are checked, and nothing may be lost."""

import json

import pytest

from lastword.cli.main import main

TIMING = pytest.mark.timing


def run(tmp_path, *words):
    """Run the benchmark, and return its exit status and its rows."""
    out = tmp_path / "rows.jsonl"
    status = main(["bench", "serve", "--quick", "--seconds", "1", "--json", str(out), *words])
    about, *rows = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert about["run"]["torch"]
    return status, rows


@TIMING
def test_overload_answers_429_and_goes_on(tmp_path):
    status, rows = run(tmp_path, "--scenarios", "overload")
    assert status == 0
    assert [row["kind"] for row in rows] == ["documents", "queries"]
    for row in rows:
        most = row["loads"][-1]
        assert row["right"]
        assert most["statuses"].keys() == {"200", "429"}, most
        assert most["statuses"]["429"] > most["statuses"]["200"]
        assert most["goodput"] > 0


@TIMING
def test_slow_clients_do_not_keep_others_out(tmp_path):
    status, (row,) = run(tmp_path, "--scenarios", "slow", "--clients", "40")
    assert status == 0
    assert row["right"]
    assert [each["begun"] for each in row["slow_clients"]] == [40]


@TIMING
def test_clients_that_go_away_leave_nothing(tmp_path, capsys):
    status, (row,) = run(tmp_path, "--scenarios", "disconnects", "--disconnects", "120")
    assert status == 0, capsys.readouterr().out
    assert row["met"]
    assert sum(row["ended"].values()) == 120
    assert len(row["ended"]) == 6


@TIMING
def test_sigterm_loses_no_accepted_request(tmp_path):
    status, (row,) = run(tmp_path, "--scenarios", "sigterm", "--restarts", "1")
    assert status == 0, row
    assert row["requests"]["answered"] > 0
    assert row["requests"]["lost"] == 0
    assert row["exit_statuses"] == [0]


@pytest.mark.soak
@pytest.mark.timing
def test_the_full_counts(tmp_path):
    names = ["overload", "slow", "disconnects", "sigterm", "soak"]
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "serve", "--scenarios", *names, "--json", str(out)]) == 0
