"""The gate before every time: an operation's outputs against its PyTorch twin in fp64.

Output memory is filled with NaN before the call, and what a call may write in place is compared too. Two bounds hold:
no element errs by more than twice the twin's own error in the dtype plus a floor, no row by more than a share of it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lastword.bench.kernels.cases import Case, Inputs
from lastword.kernels import cpu as reference

# Of the largest magnitude: half a unit in the last place of a value stored in the dtype; in fp32 a few sums' worth.
FLOOR = {torch.float32: 4e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
# RMS of a row's error over the RMS of the row: rounded probabilities and a rounded store, each about 2^-9 in bf16.
ROW_ERROR = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

Twin = Callable[..., Tensor | None]


@dataclass(frozen=True, slots=True)
class Runner:
    """One implementation with its arguments: `run` is what is timed, `read` gives its outputs in the twin's form."""

    run: Callable[[], object]
    read: Callable[[object], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an implementation computes its operation; `reason` says what differs."""

    right: bool
    reason: str
    max_error: float | None
    allowed: float


class Gate:
    """The truth of one case, and what errors its dtype allows."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.twin: Twin = getattr(reference, f"{case.op}_ref")
        self.truth = self._truth()
        own = plain(self.twin, case.inputs())
        own_errors = [_largest(a, b) for a, b in zip(own.read(own.run()), self.truth, strict=True)]
        self.allowed = [
            2 * error + FLOOR[dtype] * float(truth.abs().max())
            for error, truth in zip(own_errors, self.truth, strict=True)
        ]

    def _truth(self) -> list[Tensor]:
        """The twin in fp64; attention one KV head at a time, which bounds its logits."""
        inputs = self.case.inputs().double()
        if not self.case.op.endswith("attention"):
            runner = plain(self.twin, inputs)
            return runner.read(runner.run())
        q, k, v, plan, scale = inputs.args
        G = q.shape[1] // k.shape[1]
        heads = [
            self.twin(q[:, G * h : G * h + G], k[:, h : h + 1], v[:, h : h + 1], plan, scale)
            for h in range(k.shape[1])
        ]
        return [torch.cat([head for head in heads if head is not None], dim=1), q, k, v]

    def check(self, runner: Runner, *, poison: bool = True) -> Verdict:
        """Run an implementation once, on arguments still fresh, and compare everything it may have written.

        Args:     poison: fill what it allocates with NaN, so that an element left unwritten is seen.
        """
        with _poisoned() if poison else warnings.catch_warnings(action="ignore"):
            outputs = runner.read(runner.run())
        if len(outputs) != len(self.truth):
            reason = f"returns {_counted(outputs)}, expected {_counted(self.truth)}"
            return Verdict(False, reason, None, self.allowed[0])
        worst = Verdict(True, "", 0.0, self.allowed[0])
        for i, (got, truth) in enumerate(zip(outputs, self.truth, strict=True)):
            verdict = self._compare(got, truth, self.allowed[i])
            if not verdict.right:
                return verdict
            if i == 0:
                worst = verdict
        return worst

    def _compare(self, got: Tensor, truth: Tensor, allowed: float) -> Verdict:
        if got.shape != truth.shape:
            reason = f"has shape {list(got.shape)}, expected {list(truth.shape)}"
            return Verdict(False, reason, None, allowed)
        if got.numel() and got.dtype == torch.float64:
            return Verdict(False, "is fp64, expected the inputs' dtype", None, allowed)
        if not bool(got.isfinite().all()):
            bad = int((~got.isfinite()).sum())
            reason = f"{bad:,} elements unwritten or not finite"
            return Verdict(False, reason, None, allowed)
        error = _largest(got, truth)
        if not error <= allowed:
            return Verdict(False, f"errs by {error:.1e}, allowed {allowed:.1e}", error, allowed)
        row = _row_error(got, truth)
        if not row <= ROW_ERROR[self.dtype]:
            reason = f"a row errs by {row:.1e} of itself, allowed {ROW_ERROR[self.dtype]:.0e}"
            return Verdict(False, reason, error, allowed)
        return Verdict(True, "", error, allowed)


def plain(operation: Twin, inputs: Inputs) -> Runner:
    """An operation called as it is: what it returns, then its tensor arguments, which it may have written."""

    def read(result: object) -> list[Tensor]:
        return ([result] if isinstance(result, Tensor) else []) + inputs.tensors()

    return Runner(lambda: operation(*inputs.args, **inputs.options), read)


def _largest(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth).abs().max()) if truth.numel() else 0.0


def _row_error(got: Tensor, truth: Tensor) -> float:
    error = (got.double() - truth).reshape(len(truth), -1).square().mean(-1).sqrt()
    size = truth.reshape(len(truth), -1).square().mean(-1).sqrt()
    return float((error / size.clamp_min(1e-30)).max()) if truth.numel() else 0.0


def _counted(outputs: list[Tensor]) -> str:
    return f"{len(outputs)} tensors, the arguments counted"


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fill uninitialised memory with NaN: PyTorch does so where deterministic algorithms are asked for."""
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
