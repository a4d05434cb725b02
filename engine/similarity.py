"""Similarity functions of vectors, under the names that sentence-transformers uses.

These functions do not check that the vectors belong to the same space. Whoever saves vectors should save their
`ModelInfo.space_fingerprint` too, and compare it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.arguments import Numbers, as_numbers, is_one_of, short_repr
from lastword.errors import ConfigError, InputError
from lastword.kernels.caller_settings import default_settings
from lastword.weights.embedding_spec import SIMILARITIES

Vectors = Numbers  # a tensor, an array, or a list of vectors or of numbers


def similarity(a: Vectors, b: Vectors, name: str = "cosine") -> Tensor:
    """Compare every vector of a with every vector of b; a larger value means closer vectors.

    cosine: a·b / (‖a‖‖b‖); dot: a·b; euclidean: −‖a − b‖; manhattan: −Σ|a − b|.

    Args:
        a: [N, dim] or [dim], any real dtype; a tensor, an array or a list of vectors. uint8 is refused. int8 can be
            compared only by cosine, and only if it was made without ranges: each vector then has its own scale and a
            largest absolute value of 127. int8 without that value is refused, because it holds packed bits (`binary`)
            or was made with ranges. int8 that was made with ranges but happens to reach 127 is not recognised.
        b: [M, dim] or [dim], likewise.
        name: cosine, dot, euclidean or manhattan.

    Returns:
        [N, M] fp32, on the device of a.

    Raises:
        InputError: an argument is not a vector or matrix of numbers, the widths differ, or 8-bit codes cannot be
            compared.
        ConfigError: there is no function of this name.

    Numerics:
        fp32, whatever the caller's autocast and matmul settings.
    """
    a, b = _as_matrices(a, b, name)
    with default_settings():
        if name == "euclidean":
            return -torch.cdist(a, b)
        if name == "manhattan":
            return -torch.cdist(a, b, p=1.0)
        if name == "cosine":
            a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        return a @ b.T


def similarity_pairwise(a: Vectors, b: Vectors, name: str = "cosine") -> Tensor:
    """Compare row i of a with row i of b, as `similarity` does; a single vector is compared with every row.

    Args:
        a: [N, dim] or [dim].
        b: [N, dim] or [dim].
        name: as for `similarity`.

    Returns:
        [N] fp32, on the device of a.

    Raises:
        InputError: as for `similarity`, or the numbers of rows differ and neither is 1.
        ConfigError: there is no function of this name.
    """
    a, b = _as_matrices(a, b, name)
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


def _as_matrices(a: Vectors, b: Vectors, name: str) -> tuple[Tensor, Tensor]:
    """Check the name of the function, and convert a and b to fp32 matrices of equal width on the device of a."""
    if not is_one_of(name, SIMILARITIES):
        expected = f"one of: {', '.join(SIMILARITIES)}"
        raise ConfigError("similarity", "unknown", got=short_repr(name), expected=expected)
    rows, others = _rows(a, name), _rows(b, name)
    if rows.shape[1] != others.shape[1]:
        raise InputError(
            "vectors",
            "of different widths",
            got=f"{rows.shape[1]} and {others.shape[1]} dimensions",
            expected="the same width",
            remedy="Compare vectors of the same model and truncate_dim.",
        )
    return rows, others.to(rows.device)


def _rows(vectors: Vectors, name: str) -> Tensor:
    """Convert a tensor, a NumPy array, or a list of these or of numbers to an fp32 matrix [N, dim], and check it."""
    rows, expected = as_numbers(vectors), "[N, dim] or [dim]"
    if rows is None:
        got, what = type(vectors).__name__, "not numeric vectors of equal width"
        raise InputError("vectors", what, got=got, expected=expected)
    if rows.dim() not in (1, 2):
        got = f"the shape {list(rows.shape)}"
        raise InputError("vectors", "not a matrix", got=got, expected=expected)
    rows = rows[None] if rows.dim() == 1 else rows
    _refuse_codes(vectors, rows, name)
    return rows


def _refuse_codes(vectors: Vectors, rows: Tensor, name: str) -> None:
    """Raise InputError for 8-bit vectors that the function `name` cannot compare; `similarity` says which."""
    given = vectors if isinstance(vectors, list | tuple) else [vectors]
    kinds = {str(getattr(each, "dtype", "")).removeprefix("torch.") for each in given}
    if "uint8" in kinds:
        raise InputError(
            "vectors",
            "uint8 holds packed bits or shifted codes, not vectors",
            got="uint8",
            expected="vectors of numbers",
            remedy="Compare ubinary by Hamming distance; for uint8 codes undo the ranges first.",
        )
    if "int8" not in kinds:
        return
    own_scales = bool((rows.abs().amax(1) == 127).all()) if rows.numel() else True
    if name != "cosine" or not own_scales:
        raise InputError(
            "vectors",
            f"these int8 codes cannot be compared by {name}",
            got="int8"
            if own_scales
            else "int8 not scaled to 127 for each vector: packed bits, or codes with ranges",
            expected="for the cosine, vectors of precision='int8' without ranges",
            remedy="Compare binary by Hamming distance; pass vectors of one common scale as .float().",
        )
