"""The merge methods: each computes one coefficient per model and tensor, in float64.

Every method here is `out = base + sum_i c_i (x_i - base)`. The base is the tensor of the recipe's base_model with
task_arithmetic and, if there is a base_model, with multislerp; otherwise it is zero. Each model's tensor x_i is treated
as one vector; the vectors x_i - base are called rows, and their inner products the Gram matrix.
The coefficients c_i depend only on the recipe's numbers and, with slerp and multislerp, on the Gram matrix. For these
two methods a tensor is read twice: first for the Gram matrix, then for the sum. `tensor_merge.py` reads the tensors.

Letters: N models, K elements of a piece.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lastword.errors import InputError

# Above this |cos| slerp interpolates linearly, because its formula is ill-conditioned there.
SLERP_LINEAR = 0.9995
# A weighted sum S of unit vectors has no direction if |S| is at most this share of sum |w|.
_CANCELLED = 1e-8
# If |S|^2 is below this share of (sum |w|)^2, the Gram matrix does not give it precisely enough.
_DIRECT = 1e-4

# Maps coefficients c_i to |sum_i c_i (x_i - base)|^2, by reading the tensor once more.
SquaredLength = Callable[[Sequence[float]], float]


def shares(weights: Sequence[float], *, normalize: bool) -> list[float]:
    """Return the weights, divided by their sum if `normalize` is set.

    Raises:
        InputError: the sum is zero, or so close to zero that the quotients are meaningless.
    """
    if not normalize:
        return list(weights)
    total = math.fsum(weights)
    if abs(total) <= _CANCELLED * math.fsum(map(abs, weights)):
        raise InputError(
            "merge",
            f"the weights {list(weights)} sum to {total:g}",
            expected="a sum other than 0",
            remedy="Change the weights, or do not normalise them.",
        )
    return [weight / total for weight in weights]


def gram(pieces: Iterable[Tensor], count: int) -> Tensor:
    """Compute the Gram matrix of `count` = N rows, float64 [N, N], from pieces [N, K] of all rows."""
    total = torch.zeros((count, count), dtype=torch.float64, device="cpu")
    for piece in pieces:
        total += inner_products(piece)
    return total


def inner_products(piece: Tensor) -> Tensor:
    """Return the inner products, float64 [N, N], of a piece's rows [N, K]; equal rows give exactly equal entries."""
    products = torch.empty((len(piece), len(piece)), dtype=torch.float64, device="cpu")
    for i, row in enumerate(piece):
        for j in range(i + 1):
            products[i, j] = products[j, i] = torch.dot(row, piece[j])
    return products


def multislerp_coefficients(
    products: Tensor, weights: Sequence[float], squared_length: SquaredLength
) -> list[float]:
    """Return the coefficients c_i of Multi-SLERP.

        S = sum_i w_i x_i / |x_i|;  out = (sum_i w_i |x_i|) S / |S|

    Here x_i is a row. This is the whole method: the tangent step in its usual formulation is zero for any weights. An
    all-zero row has no direction and adds nothing to S. If there are only two rows and their weighted directions
    cancel, they are merged linearly.

    Args:
        products: the Gram matrix [N, N] of the rows x_i.
        weights: the weights w_i.
        squared_length: called only if the directions nearly cancel. The Gram matrix then does not determine |S|
            precisely, so S itself is summed.

    Raises:
        InputError: a row is not finite, or the directions of three or more rows cancel.

    Source:
        mergekit 0.1.5, `multislerp`; equal in exact arithmetic.
    """
    count = len(weights)
    if count == 1:
        return [1.0]
    norms = _norms(products)
    scales = [w / n if n else 0.0 for w, n in zip(weights, norms, strict=True)]
    size = math.fsum(abs(w) for w, n in zip(weights, norms, strict=True) if n)
    if size == 0:  # every row is zero or has weight zero: there is no direction
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
    what = "the weighted directions cancel out, so their mean has no direction"
    raise InputError("merge", what, remedy="Change the weights.")


def slerp_coefficients(products: Tensor, t: float) -> list[float]:
    """Return the two coefficients of slerp, `sin((1-t)a)/sin(a)` and `sin(ta)/sin(a)`.

    a is the angle between the two rows. If the rows are nearly parallel or opposite, or one of them is zero, return
    `1-t` and `t`.

    Args:
        products: the Gram matrix [2, 2] of the rows.
        t: from 0 for the first row to 1 for the second.
    """
    first, second = _norms(products)
    cosine = _cosine(products, 0, 1) if first and second else 1.0
    if abs(cosine) > SLERP_LINEAR:
        return [1.0 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def describe(products: Tensor, coefficients: Sequence[float]) -> dict[str, Any]:
    """Return the norms of the rows x_i - base, their angles, the coefficients, and the norm of the merged row.

    There is an angle, in degrees, for each pair of rows; it is None if one of the two rows is zero.
    """
    norms = _norms(products)
    places = range(len(norms))
    c = torch.tensor(coefficients, dtype=torch.float64, device="cpu")
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
        what = f"model {place + 1} contains NaN or infinity"
        raise InputError("merge", what, expected="finite weights")
    return [float(norm) for norm in norms]


def _cosine(products: Tensor, i: int, j: int) -> float:
    """Return the cosine of two rows; exactly 1 for equal and -1 for opposite rows."""
    square = float(products[i, i] * products[j, j])
    return max(-1.0, min(1.0, float(products[i, j]) / math.sqrt(square)))


def _quadratic(products: Tensor, norms: Sequence[float], weights: Sequence[float]) -> float:
    """Return |S|^2 = sum_ij w_i w_j cos_ij over the rows that are not zero; S as in `multislerp_coefficients`."""
    held = [i for i, norm in enumerate(norms) if norm]
    return math.fsum(weights[i] * weights[j] * _cosine(products, i, j) for i in held for j in held)
