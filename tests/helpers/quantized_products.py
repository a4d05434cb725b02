"""What the tests of int8 and of fp8 products share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def assert_extreme_rows_are_kept(run: Callable[[Tensor], Tensor]) -> None:
    """Hold a product [T, 96] -> [T, 64] to what zeros, tiny, huge, NaN and infinite rows must become."""
    x = draw(6, 96)
    x[0] = 0
    x[1] *= 1e-37
    x[2] *= 1e30
    x[3, 5] = math.nan
    x[4, 5] = math.inf
    y = run(x)
    assert torch.equal(y[0], torch.zeros(64))
    assert y[[1, 2, 5]].isfinite().all()
    assert not y[[3, 4]].isfinite().any(), "a damaged row must not look whole"
