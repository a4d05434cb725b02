"""One comparison for every kernel: against the reference in fp64, beside the CPU implementation's own error."""

import torch
from torch import Tensor

# Relative RMS that a kernel may reach, and the absolute error below which nothing is asked.
RELATIVE_RMS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FLOOR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}


def assert_close(kernel: Tensor, on_cpu: Tensor, exact: Tensor) -> None:
    """Hold a kernel to twice the CPU implementation's error plus a floor, to a relative RMS, to NaN and inf in place.

    Args:  kernel, on_cpu: the results in one dtype. exact: the reference's result from the same inputs in fp64.
    """
    dtype = kernel.dtype
    assert on_cpu.dtype == dtype
    assert exact.dtype == torch.float64
    assert kernel.shape == on_cpu.shape == exact.shape
    finite = exact.isfinite()
    assert torch.equal(kernel.isnan(), on_cpu.isnan()), "NaN in other places"
    assert torch.equal(kernel.isinf(), on_cpu.isinf()), "inf in other places"
    finite &= kernel.isfinite()
    truth = exact[finite]
    error = (kernel[finite].double() - truth).abs()
    allowed = 2 * (on_cpu[finite].double() - truth).abs().max() + FLOOR[dtype] * truth.abs().max()
    assert float(error.max()) <= float(allowed), f"error {error.max():.2e}, allowed {allowed:.2e}"
    rms = error.square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-30)
    assert float(rms) <= RELATIVE_RMS[dtype], f"relative RMS {rms:.2e}"
