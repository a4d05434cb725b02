"""Similarity functions of vectors, under the names that sentence-transformers uses."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import InputError

Vectors = Tensor | Sequence[Any]  # or a NumPy array: NumPy is optional and not imported here


def similarity(a: Vectors, b: Vectors, name: str = "cosine") -> Tensor:
    """Compare every vector of a with every vector of b; larger values mean closer.

    cosine: a·b / (‖a‖‖b‖); dot: a·b; euclidean: −‖a − b‖; manhattan: −Σ|a − b|.

    Args:
        a: [N, dim] or [dim], any dtype; a tensor, an array or a list of vectors.
        b: [M, dim] or [dim], likewise.
        name: cosine, dot, euclidean or manhattan.

    Returns:
        [N, M] fp32.

    Raises:
        InputError: an argument is not a vector or matrix, or the widths differ.
    """
    a, b = _as_matrices(a, b)
    if name == "euclidean":
        return -torch.cdist(a, b)
    if name == "manhattan":
        return -torch.cdist(a, b, p=1.0)
    if name == "cosine":
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return a @ b.T


def similarity_pairwise(a: Vectors, b: Vectors, name: str = "cosine") -> Tensor:
    """Compare row i of a with row i of b by the formulas of `similarity`; a single vector is compared with every row.

    Args:
        a: [N, dim] or [dim].
        b: [N, dim] or [dim].
        name: as for `similarity`.

    Returns:
        [N] fp32.

    Raises:
        InputError: as for `similarity`, or the numbers of rows differ.
    """
    a, b = _as_matrices(a, b)
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        got = f"{len(a)} and {len(b)}"
        raise InputError(
            "vectors", "not in pairs", got=got, expected="the same number on each side"
        )
    if name == "euclidean":
        return -(a - b).square().sum(1).sqrt()
    if name == "manhattan":
        return -(a - b).abs().sum(1)
    if name == "cosine":
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return (a * b).sum(1)


def _as_matrices(a: Vectors, b: Vectors) -> tuple[Tensor, Tensor]:
    """Convert both to fp32 matrices, which must have the same width."""
    rows, others = _rows(a), _rows(b)
    if rows.shape[1] != others.shape[1]:
        raise InputError(
            "vectors",
            "of different widths",
            got=f"{rows.shape[1]} and {others.shape[1]} dimensions",
            expected="the same width",
            remedy="Compare vectors of the same model and truncate_dim.",
        )
    return rows, others


def _rows(vectors: Vectors) -> Tensor:
    """Convert a tensor, a NumPy array, or a list of these or of numbers, to a matrix [N, dim]."""
    try:
        if isinstance(vectors, list | tuple) and any(hasattr(each, "shape") for each in vectors):
            vectors = torch.stack([torch.as_tensor(each) for each in vectors])
        rows = torch.as_tensor(vectors).float()
    except (RuntimeError, TypeError, ValueError) as error:
        got, expected = type(vectors).__name__, "[N, dim] or [dim]"
        raise InputError(
            "vectors", "not numeric vectors of equal width", got=got, expected=expected
        ) from error
    if rows.dim() not in (1, 2):
        got, expected = f"the shape {list(rows.shape)}", "[N, dim] or [dim]"
        raise InputError("vectors", "not a matrix", got=got, expected=expected)
    return rows[None] if rows.dim() == 1 else rows
