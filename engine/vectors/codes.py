"""Turn stored codes of any precision into fp32 vectors, and choose the function that compares them with queries."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lastword.errors import InputError
from lastword.model.postprocess import MIN_LENGTH
from lastword.similarity import similarity

if TYPE_CHECKING:
    from lastword.vectors.made import Made


class Codes:
    """Turns the codes of stored vectors into vectors, and compares these with queries.

    If the vectors had length 1 before they were stored, those made from 8-bit codes or bits have length 1 again.

    Args:
        made: how the vectors were made.
        name: the name of the model's similarity function.
        ranges: [2, dim], the ranges that int8 or uint8 codes were made with; None if there are none.
        unit: whether the vectors had length 1 before they were stored.

    Raises:
        InputError: the codes do not keep the lengths of the vectors, which this similarity function needs.
    """

    def __init__(self, made: "Made", name: str, ranges: Tensor | None, *, unit: bool) -> None:
        self._precision, self._unit, self._dim = made.precision, unit, made.dim
        self._where = made.where
        # The vectors have length 1 already, up to rounding; computing the lengths again would take most of the time.
        self._name = "dot" if unit and name == "cosine" else name
        self._step = self._zero = None  # a value is code · step + zero
        if ranges is not None:
            self._step = (ranges[1] - ranges[0]) / 254
            self._zero = (ranges[0] + ranges[1]) / 2
            if made.precision == "uint8":
                self._zero -= 128 * self._step
        no_length = made.precision.endswith("binary") or (
            made.precision == "int8" and ranges is None
        )
        if no_length and not unit and name != "cosine":
            raise InputError(
                made.where,
                f"{made.precision} vectors cannot be compared by the model's similarity, {name}",
                got=f"{made.precision}, which does not keep the length of a vector",
                expected="float32 or float16, or int8 with ranges",
            )
        byte = torch.arange(256, dtype=torch.int32, device="cpu")
        shifts = torch.arange(7, -1, -1, dtype=torch.int32, device="cpu")
        bits = byte[:, None] >> shifts & 1  # [256, 8]
        self._signs = (bits * 2 - 1).float() / made.dim**0.5

    def vectors(self, codes: Tensor) -> Tensor:
        """Return fp32 vectors [n, dim] for stored codes [n, width]; a bit becomes +c or -c, with c = 1 / sqrt(dim).

        Raises:
            InputError: int8 codes were made with ranges that are not known.
        """
        if self._precision in ("float32", "float16"):
            return codes.float()
        if self._precision in ("binary", "ubinary"):
            bits = codes.int() + (128 if self._precision == "binary" else 0)
            signs: Tensor = self._signs[bits]  # [n, width, 8]
            return signs.view(len(codes), self._dim)
        if self._step is None:
            self._check_scaled(codes)
        vectors = codes.float()
        if self._step is not None and self._zero is not None:
            vectors.mul_(self._step).add_(self._zero)
        if self._unit:
            lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
            vectors.div_(lengths.clamp_min_(MIN_LENGTH))
        return vectors

    def _check_scaled(self, codes: Tensor) -> None:
        """Check int8 codes without ranges: each vector's largest absolute value is 127, unless the vector is zero.

        Raises:
            InputError: a vector was made with ranges that its metadata does not name; the error's `index` is the row.
        """
        largest = torch.maximum(codes.amax(1).int(), -codes.amin(1).int())
        wrong = (largest != 127) & (largest != 0)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            what = "made with --ranges by an earlier version of lastword, which did not record the ranges"
            got = f"{int(largest[row])} as the largest of its int8 codes"
            raise InputError(
                self._where,
                what,
                got=got,
                expected="127",
                remedy="Embed the texts again.",
                index=row,
            )

    def similarity(self, queries: Tensor, codes: Tensor) -> Tensor:
        """Return the scores [Q, n] of stored codes [n, width], by the model's similarity function."""
        return similarity(queries, self.vectors(codes), self._name)
