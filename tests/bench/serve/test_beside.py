"""Other servers beside ours: which options fit together, how a result is judged, and a run beside FastAPI."""

import json
import sys
from pathlib import Path

import pytest

from lastword.bench.serve.beside.comparison import OURS, check, command, judge, take_turns
from lastword.cli.main import main
from lastword.errors import ConfigError

HERE = Path(sys.executable)


@pytest.mark.parametrize(
    ("beside", "model", "python", "expected"),
    [
        (["fastapi"], None, None, "--model FOLDER"),
        (["vllm"], Path("m"), None, "--python FILE"),
        (["fastapi"], Path("m"), HERE, "--python FILE"),
        (["vllm"], Path("m"), Path("/no/such/python"), "a Python with vLLM"),
    ],
)
def test_options_that_do_not_fit_together(beside, model, python, expected):
    with pytest.raises(ConfigError) as caught:
        check(beside, model, python)
    assert expected in str(caught.value)


def test_both_sides_compute_in_fp32_on_loopback():
    words = command("vllm", Path("m"), 81, HERE)
    assert words[words.index("--dtype") + 1] == "float32"
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert command("fastapi", Path("m"), 81, None)[-2:] == ["m", "81"]


def test_servers_take_turns_and_the_first_round_does_not_count():
    seen = []

    def measure(name, turn):
        seen.append((name, turn))
        return {"turn": turn}

    assert take_turns("ab", 2, measure) == {each: [{"turn": 1}, {"turn": 2}] for each in "ab"}
    assert seen == [(name, turn) for turn in range(3) for name in "ab"]


@pytest.mark.parametrize(("ours", "met"), [(31.0, True), (29.0, False)])
@pytest.mark.parametrize("wrong", [0, 1])
def test_verdict(ours, met, wrong):
    load = {"wrong": wrong, "statuses": {"200": 3}, "latencies": {"200": [1.0, 2.0, 3.0]}}
    loads = {OURS: [load], "fastapi": [load]}
    row = judge("fastapi", {OURS: ours, "fastapi": 10.0}, 7.0, loads, loads)
    assert (row.met, row.right) == (met, not wrong)
    assert f"lastword {ours:.1f} requests/s" in row.measured
    assert "p50 2.0 ms, p99 3.0" in row.measured


@pytest.mark.timing
def test_beside_fastapi(tmp_path, tiny_checkpoint):
    pytest.importorskip("sentence_transformers")
    out = tmp_path / "rows.jsonl"
    words = ["--quick", "--seconds", "1", "--model", str(tiny_checkpoint), "--json", str(out)]
    assert main(["bench", "serve", "--beside", "fastapi", *words]) == 0
    _, row = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert row["right"]
    assert row["requests_per_s"].keys() == {OURS, "fastapi"}
