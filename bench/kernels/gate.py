"""The gate before each measurement: compare an implementation's outputs with those of the fp64 reference.

During the call, memory that the implementation allocates is filled with NaN, except for baselines. Tensors that a call
may change in place are compared too. Two bounds are checked. No element's error may exceed twice the largest error of
the CPU implementation in the same dtype, plus `FLOOR` times the largest value. No row's RMS error may exceed a share of
the row's RMS, `ROW_ERROR`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lastword.bench.kernels.cases import Case, CaseInputs
from lastword.kernels import cpu, reference

# The floor, as a share of the largest magnitude in the output: in fp16 and bf16 half a unit in the last place; in fp32
# the error of a few sums.
FLOOR = {torch.float32: 4e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
# RMS of a row's error divided by the RMS of the row. In bf16, rounding the softmax weights and rounding the result each
# err by about 2^-9.
ROW_ERROR = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

Operation = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Implementation:
    """One implementation with its arguments.

    `run` is the function that is timed. `read` takes the result of `run` and returns all outputs in the layout of the
    reference.
    """

    run: Callable[[], object]
    read: Callable[[object], list[Tensor]]


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether an implementation is right; if not, `reason` says how its outputs are wrong.

    `max_error` is the largest error of an element in the first wrong output, or in the first output if none is wrong;
    None if no numbers were compared. `allowed` is the bound on that error.
    """

    right: bool
    reason: str
    max_error: float | None
    allowed: float


class Gate:
    """Checks implementations of one case against its fp64 reference, within the errors that the dtype allows."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.truth = _outputs(getattr(reference, case.op), case.inputs().dense().double())
        own = _outputs(getattr(cpu, case.op), case.inputs().dense())
        self.allowed = [
            2 * _largest(got, truth) + FLOOR[dtype] * float(truth.abs().max())
            for got, truth in zip(own, self.truth, strict=True)
        ]

    def check(self, runner: Implementation, *, poison: bool = True) -> GateResult:
        """Run an implementation once, and compare everything that it may have written with the reference.

        Args:
            runner: the implementation, with arguments that no call has used yet.
            poison: whether to fill memory that the implementation allocates with NaN, to find unwritten elements.
        """
        with _poison_new_tensors() if poison else warnings.catch_warnings(action="ignore"):
            outputs = runner.read(runner.run())
        if len(outputs) != len(self.truth):
            reason = f"returns {_count_outputs(outputs)}, expected {_count_outputs(self.truth)}"
            return GateResult(False, reason, None, self.allowed[0])
        worst = GateResult(True, "", 0.0, self.allowed[0])
        for i, (got, truth) in enumerate(zip(outputs, self.truth, strict=True)):
            verdict = self._compare(got, truth, self.allowed[i])
            if not verdict.right:
                return verdict
            if i == 0:
                worst = verdict
        return worst

    def _compare(self, got: Tensor, truth: Tensor, allowed: float) -> GateResult:
        if got.shape != truth.shape:
            reason = f"has shape {list(got.shape)}, expected {list(truth.shape)}"
            return GateResult(False, reason, None, allowed)
        if got.numel() and got.dtype == torch.float64:
            return GateResult(False, "is fp64, expected the inputs' dtype", None, allowed)
        if not bool(got.isfinite().all()):
            bad = int((~got.isfinite()).sum())
            reason = f"{bad:,} elements unwritten or not finite"
            return GateResult(False, reason, None, allowed)
        error = _largest(got, truth)
        if not error <= allowed:
            return GateResult(False, f"errs by {error:.1e}, allowed {allowed:.1e}", error, allowed)
        row = _row_error(got, truth)
        if not row <= ROW_ERROR[self.dtype]:
            reason = f"a row's relative error is {row:.1e}, allowed {ROW_ERROR[self.dtype]:.0e}"
            return GateResult(False, reason, error, allowed)
        return GateResult(True, "", error, allowed)


def wrap_operation(operation: Operation, inputs: CaseInputs) -> Implementation:
    """Wrap an operation and its inputs. The outputs are its result and the input tensors, which it may change."""

    def read(result: object) -> list[Tensor]:
        return ([result] if isinstance(result, Tensor) else []) + inputs.tensors()

    return Implementation(lambda: operation(*inputs.args, **inputs.options), read)


def _outputs(operation: Operation, inputs: CaseInputs) -> list[Tensor]:
    runner = wrap_operation(operation, inputs)
    return runner.read(runner.run())


def _largest(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth).abs().max()) if truth.numel() else 0.0


def _row_error(got: Tensor, truth: Tensor) -> float:
    error = (got.double() - truth).reshape(len(truth), -1).square().mean(-1).sqrt()
    size = truth.reshape(len(truth), -1).square().mean(-1).sqrt()
    return float((error / size.clamp_min(1e-30)).max()) if truth.numel() else 0.0


def _count_outputs(outputs: list[Tensor]) -> str:
    return f"{len(outputs)} tensors including arguments"


@contextmanager
def _poison_new_tensors() -> Iterator[None]:
    """Make PyTorch fill new tensors with NaN in the `with` block.

    PyTorch does so when deterministic algorithms are requested.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
