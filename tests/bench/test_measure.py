"""Times, peaks and the recorded facts of a run."""

import sys
import time
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lastword.bench import machine, measure
from lastword.bench.measure import (
    Peaks,
    Timing,
    matmul_rate,
    measure_peaks,
    median_seconds,
    read_rate,
    time_call,
)

CPU = torch.device("cpu")


@pytest.mark.timing
def test_a_call_is_timed_without_its_warm_up() -> None:
    calls = []

    def slow_once() -> None:
        time.sleep(0.2 if not calls else 0.01)
        calls.append(1)

    timing = time_call(slow_once, CPU, rep_ms=60)
    assert 10 <= timing.p20_ms <= timing.median_ms <= timing.p80_ms < 150
    assert 4 <= len(calls) <= 8


def test_a_long_call_is_timed_three_times_and_a_short_one_a_hundred() -> None:
    for seconds, rep_ms, expected in ((0.01, 1, 3), (0, 10_000, 100)):
        calls = []
        time_call(lambda: calls.append(time.sleep(seconds)), CPU, rep_ms)  # noqa: B023
        assert len(calls) == expected + 1


def test_seconds_are_a_median_after_a_warm_up() -> None:
    calls, clock = [], iter([0, 100, 100, 101, 110, 113, 120, 122, 130, 134]).__next__
    assert median_seconds(lambda: calls.append(1), 4, CPU, clock) == 2.5
    assert len(calls) == 5
    assert median_seconds(lambda: None, 2, CPU) >= 0


def test_a_timing_is_the_median_and_two_percentiles() -> None:
    assert Timing.of([4.0, 1.0, 6.0, 2.0, 3.0, 5.0]) == Timing(3.5, 2.0, 5.0)


def test_a_gpu_is_timed_by_do_bench(monkeypatch) -> None:
    asked = {}

    def do_bench(run, **options):
        asked.update(options)
        run()
        return [2.0, 1.0, 3.0]

    fake = ModuleType("triton.testing")
    fake.do_bench = do_bench
    monkeypatch.setitem(sys.modules, "triton.testing", fake)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(testing=fake))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    calls = []
    timing = time_call(lambda: calls.append(1), torch.device("cuda:0"), rep_ms=7)
    assert (timing.median_ms, timing.p20_ms, timing.p80_ms) == (2.0, 1.0, 3.0)
    assert asked == {"warmup": 25, "rep": 7, "quantiles": [0.5, 0.2, 0.8]}
    assert calls == [1]


def test_the_least_time_is_that_of_the_nearer_peak() -> None:
    peaks = Peaks(bytes_per_s=100.0, flops_per_s=1000.0, matmul="")
    assert peaks.seconds(50, 10) == 0.5
    assert peaks.seconds(50, 2000) == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_peaks_are_those_of_the_timed_calls(monkeypatch, dtype: torch.dtype) -> None:
    """A copy of B bytes in 2 ms is B/ms, read and written; the matmul's rate is taken as it is."""
    monkeypatch.setattr(measure, "_CPU_COPY_BYTES", 1 << 20)
    ran = []

    def timed(run, device, rep_ms=100):
        ran.append(run())
        return measure.Timing(2.0, 2.0, 2.0)

    monkeypatch.setattr(measure, "time_call", timed)
    monkeypatch.setattr(measure, "_packed_rate", lambda _: 77.0)
    peaks = measure_peaks(CPU, dtype)
    assert peaks.bytes_per_s == (1 << 20) / 1e-3
    assert ran[0].nbytes == 1 << 20
    assert peaks.flops_per_s == 77.0
    assert peaks.matmul == f"1024×1024×6144 {measure.dtype_name(dtype)}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_the_matmul_of_a_cpu_is_measured(dtype: torch.dtype) -> None:
    rate, matmul = matmul_rate(CPU, dtype)
    assert 1e8 < rate < 1e14
    assert matmul == f"1024×1024×6144 {measure.dtype_name(dtype)}"


def test_reading_is_measured() -> None:
    assert 1e8 < read_rate(CPU) < 1e13


def test_a_run_says_where_it_ran() -> None:
    about = machine.describe_run(CPU, torch.float32)
    assert about["torch"] == torch.__version__
    assert about["device"]
    assert about["dtype"] == "float32"
    assert about["driver"] is None
    assert about["commit"] is None or len(about["commit"]) == 40


def test_a_checkout_without_git_takes_the_commit_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_output", lambda _: None)
    monkeypatch.setenv("LASTWORD_COMMIT", "fd14840")
    assert machine._commit() == ("fd14840", None)
    monkeypatch.delenv("LASTWORD_COMMIT")
    assert machine._commit() == (None, None)


@pytest.mark.parametrize(("load", "said"), [(0.3, None), (3.14, "busy (load 3.1)")])
def test_a_busy_machine_is_reported(load: float, said: str | None, monkeypatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    notice = machine.busy_notice(machine.describe_run(CPU, torch.float32))
    assert (notice is None) == (said is None)
    assert said is None or said in str(notice)


def test_driver_and_power_limit(monkeypatch) -> None:
    properties = SimpleNamespace(uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    seen = []
    monkeypatch.setattr(machine, "_output", lambda words: seen.append(words) or "580.1, 700.00 W")
    assert machine._nvidia(torch.device("cuda")) == ("580.1", "700.00 W")
    assert "--id=GPU-abc" in seen[0]
    monkeypatch.setattr(machine, "_output", lambda _: None)
    assert machine._nvidia(torch.device("cuda")) == (None, None)


def test_a_missing_program_is_no_answer() -> None:
    assert machine._output(["lastword-no-such-program"]) is None
    assert machine._output(["false"]) is None
