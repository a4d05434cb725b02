"""`lastword bench kernels`: check every operation, time it and compare it with the peaks of the same run.

In each case lastword's own operation comes first, then the caller's function (`--with`), then the baselines. The gate
(`gate.py`) checks each of them, and those with right results are timed. Each row is shown and written as soon as it is
measured. `bench/README.md` explains the method and has examples.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lastword import kernels
from lastword.bench.kernels.baselines import Prepare, baselines
from lastword.bench.kernels.cases import Case, cases
from lastword.bench.kernels.gate import Gate, wrap_operation
from lastword.bench.kernels.table import OURS, Row, case_line, heading, row_line, sharing_line
from lastword.bench.machine import describe_run, json_lines
from lastword.bench.measure import Peaks, Timing, measure_peaks, time_call
from lastword.bench.options import BASELINES, FORMS, OPS, REP_MS
from lastword.bench.plot import check_plot, plot_roofline
from lastword.errors import ConfigError, DeviceError, LastwordError
from lastword.runtime.device import choose_device, choose_dtype


def run(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Run the requested measurements.

    Args:
        args: options of `bench kernels`.
        show: prints a line.

    Returns:
        The number of rows in which lastword, the caller's function or a candidate kernel failed its check.

    Raises:
        ConfigError: options cannot be combined, or a file or function cannot be used.
        DeviceError: the device is unknown or has too little memory, or a kernel cannot run on it or broke its context.
    """
    own = _check_arguments(args)
    device = choose_device(args.device)
    dtype = choose_dtype(None, device) if args.dtype is None else getattr(torch, args.dtype)
    on_cpu = device.type == "cpu"
    tokens = args.tokens or (1024 if on_cpu else 16_384)
    models = args.model or (["0.6B"] if on_cpu else ["0.6B", "4B", "8B"])
    rows: list[Row] = []
    with ExitStack() as opened, torch.inference_mode():
        write = opened.enter_context(json_lines(args.json))
        if not on_cpu:  # Triton launches on the current device
            opened.enter_context(torch.cuda.device(device))
        about = describe_run(device, dtype)
        peaks = None if _in_interpreter() else measure_peaks(device, dtype)
        write({"run": about, "peaks": peaks and asdict(peaks), "tokens": tokens})
        show(heading(about, peaks))
        # At the end, or when stopped, this draws the rows so far.
        if args.plot is not None and peaks is not None:
            opened.callback(plot_roofline, args.plot, rows, peaks, about)
        beside = BASELINES if args.beside is None else tuple(args.beside)
        rep_ms = args.rep_ms or REP_MS
        bench = _Bench(device, dtype, peaks, rep_ms, args.own, own, beside)
        for case in cases(args.op or OPS, models, tokens, dtype, device):
            show(case_line(case))
            for row in bench.rows(case):
                write(asdict(row))
                if not _was_reported(rows, row):
                    show(row_line(row, peaks, _time_of_ours(rows, row)))
                rows.append(row)
            sharing = sharing_line(rows)
            if sharing is not None:
                show(sharing)
    return sum(row.failed(args.own) for row in rows)


def _check_arguments(args: argparse.Namespace) -> Callable[..., Any] | None:
    """Check the options before anything is measured; return the caller's function, or None."""
    if args.plot is not None:
        check_plot(args.plot)
        if _in_interpreter():
            raise ConfigError(
                "--plot", "nothing is timed under TRITON_INTERPRET=1", remedy="Leave one out."
            )
    if args.own is None:
        return None
    if len(args.op or OPS) != 1:
        got = "none" if args.op is None else str(len(args.op))
        raise ConfigError("--with", "needs one operation", got=got, expected="one name after --op")
    return load_function(args.own)


def _was_reported(rows: list[Row], row: Row) -> bool:
    """Return whether an earlier line already says that the implementation of `row` is not available, and why."""
    return row.right is None and any((r.by, r.reason) == (row.by, row.reason) for r in rows)


def _time_of_ours(rows: list[Row], row: Row) -> Timing | None:
    """Return the time of lastword's own implementation for the case of `row`; None if it was not timed."""
    case = (row.op, row.models, row.title)
    return next(
        (r.timing for r in rows if r.by == OURS and (r.op, r.models, r.title) == case), None
    )


@dataclass(frozen=True, slots=True)
class _Bench:
    """The settings with which every case is measured."""

    device: torch.device
    dtype: torch.dtype
    peaks: Peaks | None  # None: check only, do not time
    rep_ms: float
    own_name: str | None
    own: Callable[..., Any] | None
    beside: tuple[str, ...]

    def rows(self, case: Case) -> Iterator[Row]:
        """Check and time lastword's own operation, the caller's function and the baselines."""
        try:
            gate = Gate(case, self.dtype)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{case.op} {case.models} {case.title}",
                "the reference in fp64 does not fit in the device's memory",
                remedy="Lower --tokens.",
            ) from error
        yield self._row(
            case, gate, OURS, _prepare_operation(getattr(kernels, case.op)), tested=True
        )
        if self.own is not None:
            yield self._row(
                case, gate, str(self.own_name), _prepare_operation(self.own), tested=True
            )
        for name, prepare in baselines(case, self.beside).items():
            yield self._row(case, gate, name, prepare, tested=name in FORMS)

    def _row(self, case: Case, gate: Gate, by: str, prepare: Prepare, *, tested: bool) -> Row:
        row = Row(case.op, case.models, case.title, by, case.bytes, case.flops)
        prepared = False
        try:
            runner = prepare(case.inputs())
            prepared = True
            verdict = gate.check(runner, poison=tested)
            row = replace(
                row,
                right=verdict.right,
                reason=verdict.reason,
                max_error=verdict.max_error,
                allowed_error=verdict.allowed,
            )
            if not verdict.right or self.peaks is None:
                return row
            timing = time_call(runner.run, self.device, self.rep_ms)
        except Exception as error:  # third-party code may raise anything
            if tested and "0 active drivers" in str(error):
                raise DeviceError(
                    f"{case.op} by {by}",
                    "a Triton kernel cannot run here",
                    got=f"device {self.device}",
                    expected="a GPU",
                    remedy="Set TRITON_INTERPRET=1 to check it without one.",
                ) from error
            if "CUDA error" in str(error) or "HIP error" in str(error):
                raise DeviceError(
                    f"{case.op} by {by}",
                    "broke the GPU's context; no later call would work",
                    got=_reason(error),
                ) from error
            right = False if tested and prepared else None
            return replace(row, right=right, reason=_reason(error))
        of_peak = self.peaks.seconds(case.bytes, case.flops) / (timing.median_ms / 1e3)
        return replace(row, timing=timing, of_peak=of_peak)


def _reason(error: Exception) -> str:
    """Return the text of an error for a row; a third-party error, which may be long, is cut to its first sentence."""
    if isinstance(error, LastwordError):
        return str(error)
    said = (str(error).splitlines() or [""])[0].split(". ")[0][:120]
    return f"{type(error).__name__}: {said}"


def _prepare_operation(operation: Callable[..., Any]) -> Prepare:
    """Return a function that turns inputs into an `Implementation` of `operation` on them."""
    return lambda inputs: wrap_operation(operation, inputs)


def _in_interpreter() -> bool:
    """Return whether Triton kernels run in the interpreter, so that they can be checked but not timed."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def load_function(spec: str) -> Callable[..., Any]:
    """Import `module:function`, searching the current folder first.

    Args:
        spec: the value of --with.

    Returns:
        The function.

    Raises:
        ConfigError: there is no such module or function, or its import fails.
    """
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise ConfigError("--with", "no function", got=repr(spec), expected="module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise ConfigError(
            "--with", f"{name} cannot be imported", got=f"{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    function: object = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError("--with", f"{name} has no function {attribute!r}")
    return function
