"""Similarities of vectors, under the names that sentence-transformers' models carry."""

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(a: Tensor, b: Tensor, name: str = "cosine") -> Tensor:
    """Compare every vector of a with every one of b; larger is closer.

    cosine: a·b / (‖a‖‖b‖); dot: a·b; euclidean: −‖a − b‖; manhattan: −Σ|a − b|.

    Args:     a: [N, dim] or [dim]; b: [M, dim] or [dim]; any dtype.
    Returns:  [N, M] fp32.
    """
    a, b = _rows(a), _rows(b)
    if name == "euclidean":
        return -torch.cdist(a, b)
    if name == "manhattan":
        return -torch.cdist(a, b, p=1.0)
    if name == "cosine":
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return a @ b.T


def similarity_pairwise(a: Tensor, b: Tensor, name: str = "cosine") -> Tensor:
    """Compare row i of a with row i of b, by the same formulas.

    Args:     a, b: [N, dim] or [dim].
    Returns:  [N] fp32.
    """
    a, b = _rows(a), _rows(b)
    if name == "euclidean":
        return -(a - b).square().sum(1).sqrt()
    if name == "manhattan":
        return -(a - b).abs().sum(1)
    if name == "cosine":
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return (a * b).sum(1)


def _rows(vectors: object) -> Tensor:
    """Accept tensors, NumPy arrays and nested lists, one vector or many."""
    rows = torch.as_tensor(vectors).float()
    return rows[None] if rows.dim() == 1 else rows
