"""How far from the truth is far enough to fail: twice transformers' own error, or a floor by dtype.

Twice the error of the eager implementation in the same dtype is the field's usual test of a kernel; the floor is there
because that error can be 0 by luck. Rounding to bfloat16 (8 bits) moves a value by up to 2^-9 of itself.
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

    def layer_limit(self, theirs: float) -> float:
        """Allowed relative RMS error after a layer where transformers' own is `theirs`."""
        return max(2 * theirs, self.layer)

    def vector_limit(self, theirs: float) -> float:
        """Allowed largest difference of the vectors where transformers' own is `theirs`."""
        return max(2 * theirs, self.vector)


_BOUNDS = {
    torch.float32: Bounds(layer=1e-5, vector=2e-5, neighbour=1e-5, overlap=0.99),
    torch.bfloat16: Bounds(layer=1e-2, vector=5e-3, neighbour=1e-2, overlap=0.9),
}


def bounds_of(dtype: torch.dtype) -> Bounds:
    """Floors for a compute dtype."""
    return _BOUNDS[dtype]


def reference_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the truth: float32 for bfloat16, float64 for float32, so that it is finer than both engines."""
    return torch.float64 if dtype == torch.float32 else torch.float32
