"""Merging weights: each method as one scalar per model and tensor, in float64.

Every method here is `out = base + sum_i c_i (x_i - base)`, and the scalars c_i follow from the inner products
of the rows x_i - base alone (their Gram matrix). So a tensor is read in pieces: once for the inner products,
once for the sum, which `tensor_merge.py` makes. Knows nothing about threads, files and pieces.

Letters: N models, K elements of a piece.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lastword.errors import InputError

SLERP_LINEAR = 0.9995  # |cos| above which slerp is linear, as its formula loses its meaning there
_CANCELLED = 1e-8  # |sum of unit vectors| below this share of sum |w| has no direction
_DIRECT = 1e-4  # squared share below which the Gram matrix has too few digits left for the norm

# From coefficients c_i to |sum_i c_i (x_i - base)|^2, summed over a tensor that is read once more for it.
SquaredLength = Callable[[Sequence[float]], float]


def shares(weights: Sequence[float], *, normalize: bool) -> list[float]:
    """Give the weights as they apply: divided by their sum, or as they are.

    Raises:
        InputError: the sum is zero, or so near to it that the quotients mean nothing.
    """
    if not normalize:
        return list(weights)
    total = math.fsum(weights)
    if abs(total) <= _CANCELLED * math.fsum(map(abs, weights)):
        raise InputError(
            "merge",
            f"the weights {list(weights)} sum to {total:g}",
            expected="a sum other than 0",
            remedy="Change them, or do not normalise.",
        )
    return [weight / total for weight in weights]


def gram(pieces: Iterable[Tensor], count: int) -> Tensor:
    """Sum the inner products of rows over all pieces: float64 [N, N]."""
    total = torch.zeros((count, count), dtype=torch.float64)
    for piece in pieces:
        total += inner_products(piece)
    return total


def inner_products(piece: Tensor) -> Tensor:
    """Inner products [N, N] of the rows [N, K]; equal rows give equal entries, bit for bit."""
    products = torch.empty((len(piece), len(piece)), dtype=torch.float64)
    for i, row in enumerate(piece):
        for j in range(i + 1):
            products[i, j] = products[j, i] = torch.dot(row, piece[j])
    return products


def multislerp_coefficients(
    products: Tensor, weights: Sequence[float], squared_length: SquaredLength
) -> list[float]:
    """Give the c_i of Multi-SLERP from the Gram matrix [N, N] of the rows x_i and the weights w as they apply.

        S = sum_i w_i x_i / |x_i|;  out = (sum_i w_i |x_i|) S / |S|

    The tangent step of the usual statement is zero for any weights, so this is the whole of it. An all-zero
    row has no direction and adds none. Where the directions cancel, two rows are merged linearly.

    `squared_length` is asked for only where the directions nearly cancel: the Gram matrix then
    holds too few digits of |S|, and S is summed itself.

    Raises:
        InputError: a row is not finite, or the directions of three or more cancel.

    Source: mergekit 0.1.5, `multislerp`, whose formula this equals in exact arithmetic.
    """
    count = len(weights)
    if count == 1:
        return [1.0]
    norms = _norms(products)
    scales = [w / n if n else 0.0 for w, n in zip(weights, norms, strict=True)]
    size = math.fsum(abs(w) for w, n in zip(weights, norms, strict=True) if n)
    if size == 0:  # every row is zero or unweighted: nothing to turn
        return list(weights)
    squared = _quadratic(products, norms, weights)
    if squared < _DIRECT * size**2:
        squared = squared_length(scales)
    length = math.sqrt(squared)
    if length > _CANCELLED * size:
        mean = math.fsum(w * n for w, n in zip(weights, norms, strict=True))
        return [mean / length * scale for scale in scales]
    if count == 2:
        return list(weights)
    what = "the weighted directions cancel out, so their mean has none"
    raise InputError("merge", what, remedy="Change the weights.")


def slerp_coefficients(products: Tensor, t: float) -> list[float]:
    """Give `sin((1-t)a)/sin(a), sin(ta)/sin(a)`, a the angle of two rows; `1-t, t` where they are parallel.

    Also linear where a row is zero, which has no angle to the other.
    """
    first, second = _norms(products)
    cosine = _cosine(products, 0, 1) if first and second else 1.0
    if abs(cosine) > SLERP_LINEAR:
        return [1.0 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def describe(products: Tensor, coefficients: Sequence[float]) -> dict[str, Any]:
    """Give the norms of the rows x_i - base, their angles, the c_i, and the norm of the merged row.

    Angles are in degrees, of all pairs; None where one of the two rows is zero.
    """
    norms = _norms(products)
    places = range(len(norms))
    c = torch.tensor(coefficients, dtype=torch.float64)
    return {
        "norms": norms,
        "angles": [[_angle(products, i, j) for j in places] for i in places],
        "coefficients": list(coefficients),
        "norm": math.sqrt(max(0.0, float(c @ products @ c))),
    }


def _angle(products: Tensor, i: int, j: int) -> float | None:
    if not products[i, i] or not products[j, j]:
        return None
    return math.degrees(math.acos(_cosine(products, i, j)))


def _norms(products: Tensor) -> list[float]:
    norms = products.diagonal().sqrt().tolist()
    if not all(map(math.isfinite, norms)):
        place = next(i for i, norm in enumerate(norms) if not math.isfinite(norm))
        what = f"model {place + 1} holds NaN or infinity"
        raise InputError("merge", what, expected="finite weights")
    return [float(norm) for norm in norms]


def _cosine(products: Tensor, i: int, j: int) -> float:
    """The cosine of two rows; exactly 1 for equal and -1 for opposite ones."""
    square = float(products[i, i] * products[j, j])
    return max(-1.0, min(1.0, float(products[i, j]) / math.sqrt(square)))


def _quadratic(products: Tensor, norms: Sequence[float], weights: Sequence[float]) -> float:
    """|S|^2 = sum_ij w_i w_j cos_ij over the rows that have a direction."""
    held = [i for i, norm in enumerate(norms) if norm]
    return math.fsum(weights[i] * weights[j] * _cosine(products, i, j) for i in held for j in held)
