"""Similarities of vectors, under the names that sentence-transformers' models carry."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import InputError

Vectors = Tensor | Sequence[Any]  # and NumPy arrays, which are not imported to be named


def similarity(a: Vectors, b: Vectors, name: str = "cosine") -> Tensor:
    """Compare every vector of a with every one of b; larger is closer.

    cosine: a·b / (‖a‖‖b‖); dot: a·b; euclidean: −‖a − b‖; manhattan: −Σ|a − b|.

    Args:     a: [N, dim] or [dim]; b: [M, dim] or [dim]; any dtype. Tensors, arrays, or lists of vectors.
    Returns:  [N, M] fp32.
    Raises:   InputError for what is no matrix, or vectors of two widths.
    """
    a, b = _comparable(a, b)
    if name == "euclidean":
        return -torch.cdist(a, b)
    if name == "manhattan":
        return -torch.cdist(a, b, p=1.0)
    if name == "cosine":
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return a @ b.T


def similarity_pairwise(a: Vectors, b: Vectors, name: str = "cosine") -> Tensor:
    """Compare row i of a with row i of b, by the same formulas; one vector is compared with every row.

    Args:     a, b: [N, dim] or [dim].
    Returns:  [N] fp32.
    Raises:   InputError as `similarity` does, and for two numbers of vectors.
    """
    a, b = _comparable(a, b)
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        got = f"{len(a)} and {len(b)}"
        raise InputError("vectors", "not in pairs", got=got, expected="as many on both sides")
    if name == "euclidean":
        return -(a - b).square().sum(1).sqrt()
    if name == "manhattan":
        return -(a - b).abs().sum(1)
    if name == "cosine":
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return (a * b).sum(1)


def _comparable(a: Vectors, b: Vectors) -> tuple[Tensor, Tensor]:
    """Give both as fp32 matrices of one width."""
    rows, others = _rows(a), _rows(b)
    if rows.shape[1] != others.shape[1]:
        raise InputError(
            "vectors",
            "of two widths",
            got=f"{rows.shape[1]} and {others.shape[1]} dimensions",
            expected="as many",
            remedy="Compare vectors of one model and truncate_dim.",
        )
    return rows, others


def _rows(vectors: Vectors) -> Tensor:
    """Accept tensors, NumPy arrays, and lists of them or of numbers, one vector or many."""
    try:
        if isinstance(vectors, list | tuple) and any(hasattr(each, "shape") for each in vectors):
            vectors = torch.stack([torch.as_tensor(each) for each in vectors])
        rows = torch.as_tensor(vectors).float()
    except (RuntimeError, TypeError, ValueError) as error:
        got, expected = type(vectors).__name__, "[N, dim] or [dim]"
        raise InputError(
            "vectors", "not numbers of one width", got=got, expected=expected
        ) from error
    if rows.dim() not in (1, 2):
        got, expected = f"the shape {list(rows.shape)}", "[N, dim] or [dim]"
        raise InputError("vectors", "not a matrix", got=got, expected=expected)
    return rows[None] if rows.dim() == 1 else rows
