"""The command `lastword bench kernels`: its table, JSON lines and plot, and that a wrong kernel is not timed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lastword import kernels
from lastword.bench.kernels import kernel_benchmark as command
from lastword.bench.measure import Peaks, Timing
from lastword.bench.options import OPS
from lastword.cli.main import main

README = Path(__file__).resolve().parents[3] / "bench/README.md"
SMALL = ["--device", "cpu", "--model", "tiny", "--tokens", "64", "--rep-ms", "1"]
TIME = re.compile(r"\d (µs|ms) ")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path) -> None:
    """Replace the measured peaks, and run each test in an empty folder."""
    monkeypatch.setattr(command, "measure_peaks", lambda *_: Peaks(1e10, 1e11, "made up"))
    monkeypatch.chdir(tmp_path)


def bench(capfd, *words: str) -> tuple[int, list[str], str]:
    status = main(["bench", "kernels", *SMALL, *words])
    streams = capfd.readouterr()
    return status, streams.out.splitlines(), streams.err


def rows_of(file: str) -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()][1:]


def test_every_operation_is_shown_and_written(capfd) -> None:
    status, out, err = bench(capfd, "--beside", "sdpa-flash", "--json", "rows.jsonl")
    assert (status, err) == (0, "")
    assert sum("On a CPU" in line and "not the Triton kernels'" in line for line in out) == 1
    titles = [line.split()[0] for line in out if line.endswith("GFLOP)")]
    assert list(dict.fromkeys(titles)) == list(OPS)
    head = json.loads(Path("rows.jsonl").read_text().splitlines()[0])
    assert head["tokens"] == 64
    assert head["run"]["torch"] == torch.__version__
    assert head["peaks"]["flops_per_s"] == 1e11
    rows = rows_of("rows.jsonl")
    assert len(rows) == 4 + 2 * 5 + 2 * 4  # SDPA does not know shared prefixes
    for row in rows:
        assert row["right"]
        median = row["timing"]["median_ms"]
        assert 0 < row["timing"]["p20_ms"] <= median <= row["timing"]["p80_ms"]
        least = max(row["bytes"] / 1e10, row["flops"] / 1e11)
        assert row["of_peak"] == pytest.approx(least / (median / 1e3))
    assert len([line for line in out if TIME.search(line)]) == len(rows)
    assert sum("sharing the prefix" in line for line in out) == 2


def test_a_wrong_kernel_has_no_time(capfd, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "swiglu", lambda gate_up: gate_up[:, : gate_up.shape[1] // 2])
    status, out, err = bench(
        capfd, "--op", "swiglu", "rms_norm", "--beside", "--json", "r.jsonl", "--plot", "r.svg"
    )
    assert status == 1
    assert "wrong implementations under test: 1; see the table above" in err
    wrong, right = rows_of("r.jsonl")
    assert (wrong["right"], wrong["timing"], wrong["of_peak"]) == (False, None, None)
    assert right["timing"] is not None
    (line,) = [line for line in out if "WRONG, not timed: errs by" in line]
    assert not TIME.search(line)


MINE = """
import torch
def right(x, weight, eps):
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
def wrong(x, weight, eps):
    return right(x, weight, 0.0)
def raises(x, weight, eps):
    raise KeyError("no such thing. More words")
value = 1
"""


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("right", 0, None),
        ("wrong", 1, "WRONG, not timed: errs by"),
        ("raises", 1, "WRONG, not timed: KeyError: 'no such thing"),
    ],
)
def test_a_function_of_the_caller(capfd, name: str, status: int, said: str | None) -> None:
    Path(f"mine_{name}.py").write_text(MINE)
    own = f"mine_{name}:{name}"
    words = ["--op", "rms_norm", "--with", own, "--beside", "--json", "r.jsonl"]
    path = list(sys.path)
    got, out, _ = bench(capfd, *words)
    assert got == status
    assert sys.path == path
    (line,) = [line for line in out if line.startswith(f"  {name} ")]
    assert bool(TIME.search(line)) == (said is None)
    assert said is None or said in line
    ours, theirs = rows_of("r.jsonl")
    assert (ours["by"], theirs["by"]) == ("lastword", own)
    assert (theirs["timing"] is not None) == (said is None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--with", "mine_bad:right"], "--with: needs one operation; got none"),
        (
            ["--op", "swiglu", "rms_norm", "--with", "mine_bad:right"],
            "--with: needs one operation; got 2",
        ),
        (["--op", "rms_norm", "--with", "mine_bad"], "expected module:function"),
        (["--op", "rms_norm", "--with", "mine_bad:"], "expected module:function"),
        (["--op", "rms_norm", "--with", "mine_bad:value"], "has no function 'value'"),
        (["--op", "rms_norm", "--with", "mine_bad:gone"], "has no function 'gone'"),
        (
            ["--op", "rms_norm", "--with", "no_such:f"],
            "no_such cannot be imported; got ModuleNotFound",
        ),
        (["--op", "rms_norm", "--with", "broken:f"], "broken cannot be imported; got ZeroDivision"),
        (["--plot", "a.pdf"], "expected a name that ends in .svg or .png"),
        (["--plot", "gone/a.svg"], "no such folder; got 'gone'"),
        (["--json", "gone/a.jsonl"], "gone: no such folder"),
        (["--op", "gelu"], "--op: unknown; got 'gelu'"),
        (["--beside", "numpy"], "--beside: unknown; got 'numpy'"),
        (["--tokens", "0"], "whole number of at least 1"),
        (["--dtype", "int8"], "--dtype: unknown; got 'int8'"),
        (["--device", "tpu"], "--device: unknown; got 'tpu'"),
    ],
)
def test_bad_options_are_one_line(capfd, words: list[str], said: str) -> None:
    Path("mine_bad.py").write_text(MINE)
    Path("broken.py").write_text("1 / 0")
    status, out, err = bench(capfd, *words)
    assert (status, out) == (2, [])
    assert said in err
    assert err.count("\n") == 1


def test_without_matplotlib_nothing_is_measured(capfd, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = bench(capfd, "--plot", "a.svg")
    assert (status, out) == (2, [])
    assert "pip install 'lastword[bench]'" in err


def test_no_plot_without_times(capfd, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    status, out, err = bench(capfd, "--plot", "a.svg")
    assert (status, out) == (2, [])
    assert "nothing is timed under TRITON_INTERPRET=1" in err


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_plot(capfd, kind: str) -> None:
    words = ["--op", "rms_norm", "forest_attention", "--beside", "sdpa-flash"]
    assert bench(capfd, *words, "--plot", f"roof.{kind}")[0] == 0
    drawn = Path(f"roof.{kind}").read_bytes()
    if kind == "png":
        assert drawn.startswith(b"\x89PNG")
    else:
        assert b"<svg" in drawn
        assert b"operations a byte" in drawn or drawn.count(b"<use") > 10


def test_a_missing_baseline_is_said_once(capfd) -> None:
    words = ["--op", "forest_attention", "--beside", "eager", "varlen", "--json", "r.jsonl"]
    status, out, _ = bench(capfd, *words)
    assert status == 0
    said = [line for line in out if "not available" in line]
    assert len(said) == 2
    assert "eager          not available: cpu: lastword itself runs eager PyTorch here" in said[0]
    assert "varlen         not available: NotImplementedError: Could not run" in said[1]
    missing = [row for row in rows_of("r.jsonl") if row["by"] == "varlen"]
    assert len(missing) == 4
    assert all(row["right"] is None and row["timing"] is None for row in missing)


def test_a_wrong_baseline_has_no_time_and_fails_nothing(capfd, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x, *rest: x * 1.01)
    words = ["--op", "rms_norm", "--beside", "compile"]
    status, out, _ = bench(capfd, *words)
    assert status == 0
    assert any("compile        WRONG, not timed" in line for line in out)


def test_out_of_memory_is_one_line(capfd, monkeypatch) -> None:
    def full(*_):
        raise torch.OutOfMemoryError("2 GiB")

    monkeypatch.setattr(command, "Gate", full)
    status, _, err = bench(capfd, "--op", "swiglu")
    assert status == 2
    assert "swiglu tiny 64 tokens: the reference in fp64 does not fit" in err


def test_a_broken_gpu_context_ends_the_run(capfd, monkeypatch) -> None:
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(kernels, "rms_norm", broken)
    status, _, err = bench(capfd)
    assert status == 2
    assert "rms_norm by lastword: broke the GPU's context" in err
    assert "illegal memory access" in err
    assert err.count("\n") == 1


def test_a_triton_kernel_without_a_gpu_is_not_called_wrong(capfd) -> None:
    Path("mine_triton.py").write_text(
        "def right(x, weight, eps):\n    raise RuntimeError('0 active drivers ([]). One is needed.')\n"
    )
    status, out, err = bench(capfd, "--op", "rms_norm", "--with", "mine_triton:right")
    assert status == 2
    assert "rms_norm by mine_triton:right: a Triton kernel cannot run here" in err
    assert "expected a GPU. Set TRITON_INTERPRET=1" in err
    assert err.count("\n") == 1
    assert not any("WRONG" in line for line in out)


def test_one_token(capfd) -> None:
    status, out, _ = bench(capfd, "--tokens", "1", "--beside")
    assert status == 0
    assert len(set(out) & {"forest_attention  tiny  1 text of 1  (0.0 MB, 0.00 GFLOP)"}) == 1


def test_a_stopped_run_keeps_its_rows(capfd, monkeypatch) -> None:
    times = iter([Timing(1.0, 1.0, 1.0)])

    def stopped(*_):
        try:
            return next(times)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(command, "time_call", stopped)
    status, _, err = bench(capfd, "--beside", "--json", "r.jsonl", "--plot", "r.svg")
    assert (status, err) == (130, "lastword: stopped\n")
    assert Path("r.svg").stat().st_size > 0
    assert [row["op"] for row in rows_of("r.jsonl")] == ["rms_norm"]


def test_times_are_over_ours_and_units_fit(capfd, monkeypatch) -> None:
    times = iter([Timing(0.5, 0.4, 0.6), Timing(1.25, 1.2, 1.3)])
    monkeypatch.setattr(command, "time_call", lambda *_: next(times))
    _, out, _ = bench(capfd, "--op", "forest_attention", "--beside", "sdpa-flash", "--model", "4B")
    ours, theirs, *_ = (line.split() for line in out if line.startswith(("  lastw", "  sdpa")))
    # 64·65/2 pairs · 32 heads · 4 · 128 operations in 0.5 ms, against peaks of 1e10 and 1e11
    assert " ".join(ours) == "lastword 500.0 µs (400.0 µs to 600.0 µs) 68.2 GFLOP/s 68% of peak"
    assert " ".join(theirs).startswith("sdpa-flash 1.25 ms (1.20 ms to 1.30 ms) 27.3 GFLOP/s")
    assert theirs[-2:] == ["2.50x", "ours"]


RUN_BOTH = """
import sys
from lastword.cli.main import main
statuses = []
for name in ("my_kernels", "without_eps"):
    words = [word.replace("my_kernels", name) for word in sys.argv[1:]]
    statuses.append(main(words))
sys.exit(0 if statuses == [0, 1] else repr(statuses))
"""


def test_readme_example(tmp_path: Path) -> None:
    """The Triton kernel of the README passes the gate in the interpreter; without eps it does not."""
    text = README.read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (line,) = re.findall(
        r"^\$ TRITON_INTERPRET=1 lastword (.*?[^\\])$", text, re.MULTILINE | re.DOTALL
    )
    (tmp_path / "my_kernels.py").write_text(block)
    (tmp_path / "without_eps.py").write_text(block.replace(" / C + eps", " / C"))
    done = subprocess.run(
        [sys.executable, "-c", RUN_BOTH, *line.replace("\\\n", " ").split()],
        cwd=tmp_path,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("my_rms_norm    right: errs by") == 1
    assert done.stdout.count("my_rms_norm    WRONG, not timed: errs by") == 1
    assert done.stdout.count("nothing is timed") == 2
    assert "of peak" not in done.stdout
