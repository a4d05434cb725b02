"""Final states to vectors: cut to the wanted width, normalise, check, quantise.

Knows tensors only. Every vector passes here on its way out, so none that is not finite gets past.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import ConfigError

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


@dataclass(frozen=True, slots=True, eq=False)
class VectorFormat:
    """How a text's vector is asked for: `dim` leading dimensions, of length 1 with `normalize`, stored in `precision`.

    Raises:
        ConfigError: a precision that does not go with `dim` and `ranges`.
    """

    dim: int
    normalize: bool
    precision: str = "float32"
    ranges: Tensor | None = None  # [2, dim], for int8 (optional) and uint8

    def __post_init__(self) -> None:
        check_precision(self.precision, self.dim, self.ranges)

    def _key(self) -> tuple[object, ...]:
        """Make equal what gives the same vectors; ranges are the same where they are one tensor."""
        return (
            self.dim,
            self.normalize,
            self.precision,
            id(self.ranges) if self.ranges is not None else 0,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorFormat) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def check_precision(precision: str, dim: int, ranges: Tensor | None) -> None:
    """Refuse an unknown precision, or one that `dim` or the lack of ranges does not allow."""
    if precision not in PRECISIONS:
        expected = f"one of {', '.join(PRECISIONS)}"
        raise ConfigError("precision", "unknown", got=repr(precision), expected=expected)
    if precision.endswith("binary") and dim % 8:
        what = f"{precision} packs 8 dimensions per byte"
        raise ConfigError("precision", what, got=f"dim {dim}", expected="a multiple of 8")
    if precision == "uint8" and ranges is None:
        raise ConfigError(
            "precision",
            "uint8 needs ranges",
            got="none",
            expected=f"a [2, {dim}] tensor",
            remedy="Save them from a sample first.",
        )
    if ranges is None:
        return
    if tuple(ranges.shape) != (2, dim):
        got = str(list(ranges.shape))
        raise ConfigError("ranges", "wrong shape", got=got, expected=f"[2, {dim}]")
    if not bool((ranges[1] > ranges[0]).all()):
        what = "not every upper bound exceeds its lower bound"
        raise ConfigError("ranges", what, expected="lower below upper in every dimension")


def postprocess(states: Tensor, dim: int, *, normalize: bool) -> Tensor:
    """Cut to the first `dim` dimensions and scale to length 1: v = s[:dim] / max(‖s[:dim]‖, 1e-12).

    Args:
        states: [N, C], any float dtype.
        dim: leading dimensions to keep.
        normalize: whether to scale.

    Returns:
        [N, dim] fp32 on the same device; a row that was not finite stays so, for the caller to name.

    Raises:
        ConfigError: there are fewer dimensions.

    Numerics:
        In fp32.
    """
    if dim > states.shape[1]:
        expected = f"1 to {states.shape[1]}"
        raise ConfigError("dim", "out of range", got=str(dim), expected=expected)
    vectors = states[:, :dim].float()
    if normalize:
        vectors = F.normalize(vectors, dim=1)
    return vectors


def not_finite(vectors: Tensor) -> list[int]:
    """List the rows of [N, dim] that hold a NaN or an infinity."""
    finite = vectors.isfinite().all(1)
    return [] if bool(finite.all()) else (~finite).nonzero().flatten().tolist()


def quantize(vectors: Tensor, precision: str, ranges: Tensor | None = None) -> Tensor:
    """Store unit vectors in fewer bits.

    float32, float16: as they are. int8: round(127·v / max|v|), each vector by its own largest value, for cosine.
    int8 with ranges [2, dim] (lower, upper): round((v − middle) / step), step = (upper − lower) / 254, clamped to
    ±127; ranges that are the same in every dimension give codes that compare by integer dot product.
    uint8: the same plus 128. binary: bit d of each byte is v > 0, packed high bit first, as int8 (less 128);
    ubinary: as uint8. Compare both by Hamming distance.

    Args:
        vectors: [N, dim] fp32.
        precision: one of `PRECISIONS`.
        ranges: [2, dim].

    Returns:
        [N, dim], or [N, dim/8] for binary and ubinary.
    """
    if precision == "float32":
        return vectors
    if precision == "float16":
        return vectors.half()
    if precision in ("binary", "ubinary"):
        bits = (vectors > 0).reshape(len(vectors), vectors.shape[1] // 8, 8)
        powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int16)
        packed = (bits * powers).sum(-1)  # [N, dim/8]
        return packed.to(torch.uint8) if precision == "ubinary" else (packed - 128).to(torch.int8)
    if ranges is None:
        largest = vectors.abs().amax(1, keepdim=True).clamp_min(1e-12)
        return (vectors * (127.0 / largest)).round().to(torch.int8)
    lower, upper = ranges[0].float(), ranges[1].float()
    codes = ((vectors - (lower + upper) / 2) / ((upper - lower) / 254)).round().clamp(-127, 127)
    return codes.to(torch.int8) if precision == "int8" else (codes + 128).to(torch.uint8)
