"""The allowed errors: for layers and results twice transformers' own error, but at least a floor for each dtype.

Errors are differences from the reference, which transformers computes in a more precise dtype. transformers' own error
is its error when it computes in lastword's dtype. Kernels are usually allowed twice the error of the eager
implementation in the same dtype. The floor is needed because that error can be 0 by chance. Rounding to bfloat16 (8
significant bits) changes a value by up to 2^-8 of it.

With quantised matmuls, the eager implementation is transformers with its matmuls rounded as lastword rounds them
(`rounding.py`). If the largest value of a row is m times its RMS, rounding the row to n codes on each side of zero has
a relative error of m / (n·√12). Rounding to fp8 has a relative error of 2.6 %. So one matmul has an error of 1 to 4 %,
and more in int8 for rows with outliers; over the model, the error grows roughly with the square root of the number of
layers. This error differs between checkpoints, so here, too, the bound is twice the error that transformers makes with
the same checkpoint.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch


@dataclass(frozen=True, slots=True)
class Bounds:
    """The floors for one compute dtype and quantisation mode, and the limits that follow from them."""

    layer: float  # relative RMS error of a hidden state
    vector: float  # largest absolute difference from the reference vector
    neighbour: float  # largest absolute difference between a vector computed alone and in a batch
    log_odds: (
        float  # replaces `vector` and `neighbour` for a reranker, whose scores are log-odds here
    )
    overlap: float  # least share of the ten nearest texts that must agree, averaged over the texts
    neighbour_share: float = (
        0.0  # this share of transformers' own error is allowed if it is more than `neighbour`
    )
    # Least cosine with the reference vectors: on average, and for every text. Checked in quantised modes only.
    mean_cosine: float = 0.0
    min_cosine: float = 0.0

    def for_scores(self) -> Self:
        """Return the bounds for a reranker, which computes scores instead of vectors."""
        return replace(self, vector=self.log_odds, neighbour=self.log_odds)

    def layer_limit(self, theirs: float) -> float:
        """Return the allowed relative RMS error after a layer, given transformers' own error there."""
        return max(2 * theirs, self.layer)

    def vector_limit(self, theirs: float) -> float:
        """Return the largest allowed difference from the reference vectors; `theirs` is transformers' difference."""
        return max(2 * theirs, self.vector)

    def neighbour_limit(self, theirs: float) -> float:
        """Return how much a vector may change between batches; `theirs` is as for `vector_limit`."""
        return max(self.neighbour_share * theirs, self.neighbour)


_BOUNDS = {
    (torch.float32, None): Bounds(layer=1e-5, vector=2e-5, neighbour=1e-5, log_odds=1e-4, overlap=0.99),
    (torch.bfloat16, None): Bounds(layer=1e-2, vector=5e-3, neighbour=1e-2, log_odds=5e-2, overlap=0.9),
    # Other texts in the batch can change the last bit of a value, and so the code to which it is rounded. One changed
    # code changes many inputs of the next matmul. In a deep model these changes add up to about the rounding error.
    (torch.float32, "int8"): Bounds(
        layer=1e-5, vector=2e-5, neighbour=1e-5, log_odds=1e-4, overlap=0.9,
        neighbour_share=1.0, mean_cosine=0.995, min_cosine=0.98,
    ),
    # fp8 keeps 3 bits of mantissa; rounding to it has an average error of 2.6 %.
    (torch.bfloat16, "fp8"): Bounds(
        layer=1e-2, vector=5e-3, neighbour=1e-2, log_odds=5e-2, overlap=0.8,
        neighbour_share=1.0, mean_cosine=0.99, min_cosine=0.95,
    ),
}  # fmt: skip


def bounds_of(dtype: torch.dtype, quantize: str | None) -> Bounds:
    """Return the floors for a compute dtype and a quantisation mode (None, "int8" or "fp8")."""
    return _BOUNDS[dtype, quantize]


def reference_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the reference's dtype, more precise than the compute dtype: float32 for bfloat16, float64 for float32."""
    return torch.float64 if dtype == torch.float32 else torch.float32
