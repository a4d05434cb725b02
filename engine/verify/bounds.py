"""How far from the truth is far enough to fail: twice transformers' own error, or a floor by dtype.

Twice the error of the eager implementation in the same dtype is the field's usual test of a kernel; the floor is there
because that error can be 0 by luck. Rounding to bfloat16 (8 bits) moves a value by up to 2^-9 of itself.

With quantised matmuls the eager implementation is transformers with its matmuls rounded by the same rule
(`rounding.py`). Rounding a row to n codes a side errs by m / (n·√12) of its RMS where its largest value is m times
that, rounding to fp8 by 2.6 %: 1 to 4 % per matmul, growing about like the root of the layers, and in int8 more where
a row has outliers. So the bound is not a number but the drift that this checkpoint must have.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Bounds:
    """Floors for one dtype. `layer` is relative RMS, `vector` and `neighbour` largest absolute difference."""

    layer: float
    vector: float
    neighbour: float
    overlap: float  # of the ten nearest texts, on average
    neighbour_share: float = 0.0  # of transformers' own difference
    mean_cosine: float = 0.0  # to the truth, for a mode whose drift is judged
    min_cosine: float = 0.0

    def layer_limit(self, theirs: float) -> float:
        """Allowed relative RMS error after a layer where transformers' own is `theirs`."""
        return max(2 * theirs, self.layer)

    def vector_limit(self, theirs: float) -> float:
        """Allowed largest difference of the vectors where transformers' own is `theirs`."""
        return max(2 * theirs, self.vector)

    def neighbour_limit(self, theirs: float) -> float:
        """Allowed shift beside other texts where transformers' own difference from the truth is `theirs`."""
        return max(self.neighbour_share * theirs, self.neighbour)


_BOUNDS = {
    (torch.float32, None): Bounds(layer=1e-5, vector=2e-5, neighbour=1e-5, overlap=0.99),
    (torch.bfloat16, None): Bounds(layer=1e-2, vector=5e-3, neighbour=1e-2, overlap=0.9),
    # A neighbour moves the last bit of what is rounded, and one code that falls to the other side moves many of the
    # next product: deep enough, as much as rounding itself does.
    (torch.float32, "int8"): Bounds(
        layer=1e-5, vector=2e-5, neighbour=1e-5, overlap=0.9,
        neighbour_share=1.0, mean_cosine=0.995, min_cosine=0.98,
    ),
    # Each number rounded to fp8 errs by 2.6 % on average: 3 bits of mantissa.
    (torch.bfloat16, "fp8"): Bounds(
        layer=1e-2, vector=5e-3, neighbour=1e-2, overlap=0.8,
        neighbour_share=1.0, mean_cosine=0.99, min_cosine=0.95,
    ),
}  # fmt: skip


def bounds_of(dtype: torch.dtype, quantize: str | None) -> Bounds:
    """Floors for a compute dtype and how its matmuls are quantised."""
    return _BOUNDS[dtype, quantize]


def reference_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the truth: float32 for bfloat16, float64 for float32, so that it is finer than both engines."""
    return torch.float64 if dtype == torch.float32 else torch.float32
