"""Measure how long a call takes, and the peaks of this machine: how fast it copies and multiplies.

On a GPU `triton.testing.do_bench` times calls with events, flushes the L2 cache before each call and does not count the
warm-up. On a CPU a clock times the calls, and before each call 64 MB are written to flush the cache.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from lastword.weights import dtype_name

# How many bytes to write before each call on a CPU: more than most last-level caches hold. On a GPU do_bench decides.
_FLUSH_BYTES = 64 << 20
_CPU_CALLS = (3, 100)  # smallest and largest number of calls per measurement
_GPU_COPY_BYTES, _CPU_COPY_BYTES = 2 << 30, 256 << 20
_GPU_SIDE = 8192
_ROWS, _INNER, _COLUMNS = 1024, 1024, 6144  # sizes of the matmul on a CPU


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one call: the median, and the 20th and 80th percentiles."""

    median_ms: float
    p20_ms: float
    p80_ms: float

    @staticmethod
    def of(taken_ms: Sequence[float]) -> "Timing":
        """Summarise the milliseconds of at least two calls."""
        p20, *_, p80 = statistics.quantiles(taken_ms, n=5, method="inclusive")
        return Timing(statistics.median(taken_ms), p20, p80)


@dataclass(frozen=True, slots=True)
class Peaks:
    """The rates that the device reached in this run.

    `bytes_per_s` is the rate of a large copy, counting bytes read and bytes written. `flops_per_s` is the rate of a
    large matmul of random data; `matmul` describes that matmul.
    """

    bytes_per_s: float
    flops_per_s: float
    matmul: str

    def seconds(self, num_bytes: float, flops: float) -> float:
        """Return the seconds to move `num_bytes` and compute `flops` at these rates, both at the same time."""
        return max(num_bytes / self.bytes_per_s, flops / self.flops_per_s)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(run: Callable[[], object], device: torch.device, rep_ms: float = 100) -> Timing:
    """Time `run` repeatedly for about `rep_ms` milliseconds after a warm-up, flushing caches before each call."""
    if device.type == "cuda":
        import triton.testing

        with torch.cuda.device(device):
            times = triton.testing.do_bench(
                run, warmup=25, rep=max(1, round(rep_ms)), quantiles=[0.5, 0.2, 0.8]
            )
        return Timing(*(float(value) for value in times))
    return _time_on_cpu(run, rep_ms)


def _time_on_cpu(run: Callable[[], object], rep_ms: float) -> Timing:
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8)
    run()
    taken: list[float] = []
    least, most = _CPU_CALLS
    while len(taken) < least or (sum(taken) < rep_ms and len(taken) < most):
        flush.zero_()
        start = perf_counter()
        run()
        taken.append((perf_counter() - start) * 1e3)
    return Timing.of(taken)


def median_seconds(
    call: Callable[[], object],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Return the median seconds of `rounds` calls of `call`, measured with `clock`, after one warm-up call."""
    taken = []
    for _ in range(rounds + 1):
        synchronize(device)
        start = clock()
        call()
        synchronize(device)
        taken.append(clock() - start)
    return statistics.median(taken[1:])


@torch.inference_mode()
def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Measure the rates of a large copy and of a large matmul in `dtype`."""
    return Peaks(_copy_rate(device), *matmul_rate(device, dtype))


def _copy_rate(device: torch.device) -> float:
    size = _GPU_COPY_BYTES if device.type == "cuda" else _CPU_COPY_BYTES
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    copy = time_call(lambda: target.copy_(source), device)
    return 2 * size / (copy.median_ms / 1e3)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the operations per second of a large matmul of random data, and its description.

    Args:
        device: the device that computes.
        dtype: dtype of the operands. `torch.int8` (CPU only) means lastword's int8 matmul, with activations that are
            already quantised.
    """
    name = dtype_name(dtype)
    if device.type == "cpu":
        shape = f"{_ROWS}×{_INNER}×{_COLUMNS} {name}"
        return (_int8_rate() if dtype == torch.int8 else _packed_rate(dtype)), shape
    a = torch.randn(_GPU_SIDE, _GPU_SIDE, device=device).to(dtype)
    b = torch.randn(_GPU_SIDE, _GPU_SIDE, device=device).to(dtype)
    product = time_call(lambda: a @ b, device)
    return 2 * _GPU_SIDE**3 / (product.median_ms / 1e3), f"{_GPU_SIDE}³ {name}"


def _packed_rate(dtype: torch.dtype) -> float:
    """Return the best operations per second of a large matmul on the CPU, plain or prepacked by oneDNN."""
    x, weight = torch.randn(_ROWS, _INNER).to(dtype), torch.randn(_COLUMNS, _INNER).to(dtype)
    products: list[Callable[[], object]] = [lambda: F.linear(x, weight)]
    onednn: Any = torch.ops.mkldnn
    fast = dtype == torch.float32 or (
        dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported()
    )
    if fast and hasattr(onednn, "_linear_pointwise"):
        packed = onednn._reorder_linear_weight(weight)
        products.append(lambda: onednn._linear_pointwise(x, packed, None, "none", [], ""))
    return _best_rate(products)


def _int8_rate() -> float:
    from lastword.kernels.linear.int8 import Int8Linear, QuantizedRows

    layer = Int8Linear(torch.randn(_COLUMNS, _INNER))
    rows = QuantizedRows.of(torch.randn(_ROWS, _INNER))
    return _best_rate([lambda: layer.product(rows)])


def _best_rate(products: Sequence[Callable[[], object]]) -> float:
    return max(2 * _ROWS * _INNER * _COLUMNS / _best_seconds(product) for product in products)


def read_rate(device: torch.device) -> float:
    """Return the bytes per second at which the faster of a sum and a matrix-vector product reads a large matrix."""
    size = _GPU_COPY_BYTES if device.type == "cuda" else _CPU_COPY_BYTES
    weight = torch.rand(size // 4 // _INNER, _INNER, device=device)
    x = torch.rand(_INNER, device=device)

    def wait(run: Callable[[], object]) -> Callable[[], object]:
        def run_and_wait() -> None:
            run()
            synchronize(device)

        return run_and_wait

    return max(size / _best_seconds(wait(run)) for run in (weight.sum, lambda: weight @ x))


def _best_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    taken = []
    for _ in range(repeats):
        start = perf_counter()
        run()
        taken.append(perf_counter() - start)
    return min(taken)
