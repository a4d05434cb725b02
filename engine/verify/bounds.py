"""The allowed error of each check: twice transformers' own error, but at least a floor that depends on the dtype.

Kernels are usually tested against twice the error of the eager implementation in the same dtype. The floor is needed
because that error can be 0 by chance. Rounding to bfloat16 (8 significant bits) changes a value by up to 2^-8 of it.

With quantised matmuls, the eager implementation is transformers with its matmuls rounded by the same rule
(`rounding.py`). If the largest value of a row is m times its RMS, rounding the row to n codes per side has a relative
error of m / (n·√12); rounding to fp8 has one of 2.6 %. So a matmul has an error of 1 to 4 %, and more in int8 for rows
with outliers; the total grows roughly with the square root of the number of layers. The bound is therefore not a
constant: it follows from the quantisation error that is to be expected of this checkpoint.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch


@dataclass(frozen=True, slots=True)
class Bounds:
    """The floors for one dtype and quantisation mode, and the limits that follow from them."""

    layer: float  # relative RMS error of a hidden state
    vector: float  # largest absolute difference from the reference vector
    neighbour: float  # largest absolute difference of a vector alone and in a batch
    log_odds: float  # largest absolute difference from a reranker's reference score, and of one alone and in a batch
    overlap: float  # least share of the ten nearest texts that must agree, averaged over the texts
    neighbour_share: float = 0.0  # share of transformers' own error that is allowed for `neighbour`
    # Least cosine with the reference vectors, on average and for every text; checked in quantised modes only.
    mean_cosine: float = 0.0
    min_cosine: float = 0.0

    def for_scores(self) -> Self:
        """Return the bounds for a reranker, whose results are scores instead of vectors."""
        return replace(self, vector=self.log_odds, neighbour=self.log_odds)

    def layer_limit(self, theirs: float) -> float:
        """Return the allowed relative RMS error after a layer, given transformers' own error."""
        return max(2 * theirs, self.layer)

    def vector_limit(self, theirs: float) -> float:
        """Return the allowed largest difference of the vectors, given transformers' own difference."""
        return max(2 * theirs, self.vector)

    def neighbour_limit(self, theirs: float) -> float:
        """Return the allowed change of a vector between batches, given transformers' own difference."""
        return max(self.neighbour_share * theirs, self.neighbour)


_BOUNDS = {
    (torch.float32, None): Bounds(layer=1e-5, vector=2e-5, neighbour=1e-5, log_odds=1e-4, overlap=0.99),
    (torch.bfloat16, None): Bounds(layer=1e-2, vector=5e-3, neighbour=1e-2, log_odds=5e-2, overlap=0.9),
    # Other texts in the batch change the last bit of a value before it is rounded. One changed code then changes many
    # inputs of the next matmul. In a deep model the total is as large as the rounding error itself.
    (torch.float32, "int8"): Bounds(
        layer=1e-5, vector=2e-5, neighbour=1e-5, log_odds=1e-4, overlap=0.9,
        neighbour_share=1.0, mean_cosine=0.995, min_cosine=0.98,
    ),
    # Rounding to fp8 has an average error of 2.6 %: it keeps 3 bits of mantissa.
    (torch.bfloat16, "fp8"): Bounds(
        layer=1e-2, vector=5e-3, neighbour=1e-2, log_odds=5e-2, overlap=0.8,
        neighbour_share=1.0, mean_cosine=0.99, min_cosine=0.95,
    ),
}  # fmt: skip


def bounds_of(dtype: torch.dtype, quantize: str | None) -> Bounds:
    """Return the floors for a compute dtype and a quantisation mode (None, "int8" or "fp8")."""
    return _BOUNDS[dtype, quantize]


def reference_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the reference, more precise than both engines: float32 for bfloat16, float64 for float32."""
    return torch.float64 if dtype == torch.float32 else torch.float32
