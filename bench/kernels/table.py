"""The kernel benchmark's output: a heading, one line per case, one line per implementation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lastword.bench.kernels.cases import Case
from lastword.bench.machine import busy_notice
from lastword.bench.measure import Peaks, Timing
from lastword.bench.options import FORMS

OURS = "lastword"
_EACH, _SHARED = " each", " shared"


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one implementation of one case; if it was not timed, `reason` may say why."""

    op: str
    models: str
    title: str
    by: str
    bytes: int
    flops: int
    right: bool | None = None  # None: not available
    reason: str = ""
    max_error: float | None = None
    allowed_error: float | None = None
    timing: Timing | None = None
    of_peak: float | None = None

    def failed(self, own: str | None) -> bool:
        """Return whether this row makes the run fail.

        A candidate fails if it is wrong; lastword and the caller's function `own` also fail if they cannot run.
        """
        if self.by in FORMS:
            return self.right is False  # a candidate may be unavailable on this device
        return self.by in (OURS, own) and self.right is not True


def heading(about: Mapping[str, object], peaks: Peaks | None) -> str:
    """Format the lines above the table: the device, the peaks (None if nothing is timed), and caveats."""
    where = f"{about['device']}, {about['dtype']}, torch {about['torch']}, triton {about['triton']}"
    if peaks is None:
        return f"{where}\nTRITON_INTERPRET=1: kernels are checked, and nothing is timed."
    copy, speed = format_bandwidth(peaks.bytes_per_s), format_speed(peaks.flops_per_s)
    lines = [
        where,
        f"peaks of this run: copy {copy}, matmul {speed} ({peaks.matmul}, random data)",
    ]
    if about["threads"] is not None:
        lines.append(
            f"On a CPU (threads: {about['threads']}) lastword runs its CPU implementations: "
            "the times are theirs, not the Triton kernels'."
        )
    busy = busy_notice(about)
    return "\n".join(lines if busy is None else [*lines, busy])


def case_line(case: Case) -> str:
    """Format the operation, its shape, and the bytes and FLOPs that it needs."""
    counted = f"{case.bytes / 1e6:,.1f} MB, {case.flops / 1e9:,.2f} GFLOP"
    return f"\n{case.op}  {case.models}  {case.title}  ({counted})"


def row_line(row: Row, peaks: Peaks | None, ours: Timing | None) -> str:
    """Format one implementation: its time, rate, share of the peak, and time relative to lastword's.

    If the implementation was not timed, the line gives the reason, or the error that the gate measured.
    """
    name = f"  {row.by.rpartition(':')[2]:<14}"  # the function of module:function
    if row.timing is None or peaks is None:
        if row.right is None:
            return f"{name} not available: {row.reason}"
        if not row.right:
            return f"{name} WRONG, not timed: {row.reason}"
        return f"{name} right: errs by {row.max_error:.1e}, allowed {row.allowed_error:.1e}"
    median, low, high = (
        format_time(ms) for ms in (row.timing.median_ms, row.timing.p20_ms, row.timing.p80_ms)
    )
    seconds = row.timing.median_ms / 1e3
    moves = row.bytes / peaks.bytes_per_s >= row.flops / peaks.flops_per_s
    rate = format_bandwidth(row.bytes / seconds) if moves else format_speed(row.flops / seconds)
    against = "" if ours is None else f"{row.timing.median_ms / ours.median_ms:8.2f}x ours"
    return f"{name}{median:>11}  ({low} to {high}){rate:>15}{row.of_peak:8.0%} of peak{against}"


def sharing_line(rows: Sequence[Row]) -> str | None:
    """Format the speed-up of lastword from sharing a prefix; None unless the last row's queries share one."""
    last = rows[-1]
    if not last.title.endswith(_SHARED):
        return None
    alone = last.title.removesuffix(_SHARED) + _EACH
    times = {
        row.title: row.timing
        for row in rows
        if (row.op, row.models, row.by) == (last.op, last.models, OURS)
    }
    shared, each = times.get(last.title), times.get(alone)
    if shared is None or each is None:
        return None
    return f"  sharing the prefix: {each.median_ms / shared.median_ms:.2f}x as fast"


def format_time(milliseconds: float) -> str:
    """Format a time, in microseconds below 1 ms."""
    if milliseconds < 1:
        return f"{milliseconds * 1e3:,.1f} µs"
    return f"{milliseconds:,.2f} ms"


def format_bandwidth(bytes_per_s: float) -> str:
    """Format a bandwidth in GB/s of 10^9 bytes."""
    return f"{bytes_per_s / 1e9:,.1f} GB/s"


def format_speed(flops_per_s: float) -> str:
    """Format a rate of operations, in GFLOP/s below 1 TFLOP/s."""
    if flops_per_s < 1e12:
        return f"{flops_per_s / 1e9:,.1f} GFLOP/s"
    return f"{flops_per_s / 1e12:,.1f} TFLOP/s"
