"""Turn final hidden states into vectors (truncate, normalise, check, convert) or into scores.

`rows_without_direction` finds vectors without a direction (zero, NaN, infinity), and `runtime/results.py` turns them
into errors, so that none reaches the caller. This module knows tensors only.

How to add another pooling: see `engine/model/qwen3.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lastword.arguments import as_numbers, is_one_of, short_repr
from lastword.errors import ConfigError

# A vector shorter than this consists of rounding errors.
MIN_LENGTH = 1e-12
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


@dataclass(frozen=True, slots=True, eq=False)
class VectorFormat:
    """The requested format of a text's vector.

    Args:
        dim: number of leading dimensions to keep.
        normalize: whether to scale the vector to length 1.
        precision: one of `PRECISIONS`.
        ranges: [2, dim], the lower and upper bound of each dimension, for int8 (optional) and uint8 (required): a
            tensor, an array or two lists. They are stored as an fp32 tensor on the CPU.

    Raises:
        ConfigError: the precision is unknown or does not fit `dim` and `ranges`.
    """

    dim: int
    normalize: bool
    precision: str = "float32"
    ranges: Tensor | None = None

    def __post_init__(self) -> None:
        # a frozen dataclass allows no other way to set an attribute
        object.__setattr__(self, "ranges", check_precision(self.precision, self.dim, self.ranges))

    def _key(self) -> tuple[object, ...]:
        """Return the key for equality and hashing. Ranges are equal only if they are the same tensor object."""
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


def check_precision(precision: object, dim: int, ranges: object) -> Tensor | None:
    """Check the precision against `dim` and `ranges`.

    Returns:
        The ranges as [2, dim], fp32, on the CPU; None without ranges.

    Raises:
        ConfigError: the precision is unknown, or does not fit `dim` and `ranges`.
    """
    if not is_one_of(precision, PRECISIONS):
        expected = f"one of {', '.join(PRECISIONS)}"
        raise ConfigError("precision", "unknown", got=short_repr(precision), expected=expected)
    if precision.endswith("binary") and dim % 8:
        what = f"{precision} packs 8 dimensions per byte"
        raise ConfigError("precision", what, got=f"dim {dim}", expected="a multiple of 8")
    if precision == "uint8" and ranges is None:
        raise ConfigError(
            "precision",
            "uint8 needs ranges",
            got="none",
            expected=f"a [2, {dim}] tensor",
            remedy="Take each dimension's minimum and maximum over a sample of vectors, as embed --save-ranges does.",
        )
    return None if ranges is None else _check_ranges(ranges, dim)


def _check_ranges(ranges: object, dim: int) -> Tensor:
    """Return ranges as [2, dim], fp32, on the CPU.

    Raises:
        ConfigError: the ranges are not finite numbers [2, dim], or an upper bound does not exceed its lower bound.
    """
    bounds = as_numbers(ranges)
    if bounds is None:
        what, expected = "not numbers", f"a [2, {dim}] tensor, array or list"
        raise ConfigError("ranges", what, got=type(ranges).__name__, expected=expected)
    bounds = (bounds.detach() if bounds.requires_grad else bounds).cpu()
    if tuple(bounds.shape) != (2, dim):
        got = str(list(bounds.shape))
        raise ConfigError("ranges", "wrong shape", got=got, expected=f"[2, {dim}]")
    # If a bound is not finite, neither is the difference.
    if not bool((bounds[1] - bounds[0]).isfinite().all()):
        what, expected = "not finite", "finite bounds whose differences are finite in float32"
        raise ConfigError("ranges", what, expected=expected)
    if not bool((bounds[1] > bounds[0]).all()):
        what = "not every upper bound exceeds its lower bound"
        raise ConfigError("ranges", what, expected="lower below upper in every dimension")
    return bounds


def postprocess(states: Tensor, dim: int, *, normalize: bool) -> Tensor:
    """Keep the first `dim` dimensions and, with `normalize`, scale to length 1: v = s[:dim] / ‖s[:dim]‖.

    Args:
        states: [N, C], any float dtype.
        dim: number of leading dimensions to keep.
        normalize: whether to scale.

    Returns:
        [N, dim], fp32, on the same device. With `normalize`, a row that is too short to scale (below `MIN_LENGTH`) or
        too long (its length overflows fp32) becomes zeros, and a row with NaN or infinity keeps a NaN;
        `rows_without_direction` finds all of them.

    Raises:
        ConfigError: `dim` is larger than C.

    Numerics:
        Converts to fp32 first and normalises in fp32.
    """
    if dim > states.shape[1]:
        expected = f"1 to {states.shape[1]}"
        raise ConfigError("dim", "out of range", got=str(dim), expected=expected)
    vectors = states[:, :dim].float()
    if not normalize:
        return vectors
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / lengths.masked_fill_(lengths < MIN_LENGTH, torch.inf)


def score(states: Tensor, row: Tensor) -> Tensor:
    """Return the dot product of each pair's final state with a reranker's score row: the log-odds of relevance.

    Args:
        states: [N, C], any float dtype.
        row: [C], fp32.

    Returns:
        [N], fp32, on the same device.

    Numerics:
        Converts to fp32 first, then multiplies and adds in fp32, whatever PyTorch's matmul settings are.
    """
    return (states.float() * row).sum(1)


def rows_without_direction(vectors: Tensor) -> list[int]:
    """Return the indices of the rows of [N, dim] whose length is below `MIN_LENGTH` or not finite."""
    lengths: Tensor = torch.linalg.vector_norm(vectors.float(), dim=1)
    usable = (lengths >= MIN_LENGTH) & (lengths < torch.inf)  # both comparisons are false for NaN
    return [] if bool(usable.all()) else (~usable).nonzero().flatten().tolist()


def to_precision(vectors: Tensor, precision: str, ranges: Tensor | None = None) -> Tensor:
    """Convert vectors to the number format that `precision` names. Another setting, `quantize`, is for matmuls.

    * float32, float16: the values themselves.
    * int8 without ranges: round(127·v / max|v|), scaled per vector by its largest absolute value; compare by cosine.
    * int8 with ranges: round((v − middle) / step) with step = (upper − lower) / 254, clamped to ±127. If the ranges
      are symmetric about 0 and the same in every dimension, codes can be compared by integer dot product.
    * uint8: int8 with ranges, plus 128.
    * ubinary: one bit per dimension, v > 0; eight bits per uint8, the first dimension in the highest bit.
    * binary: the byte of ubinary minus 128, as int8. Compare binary and ubinary vectors by Hamming distance.

    Args:
        vectors: [N, dim], fp32.
        precision: one of `PRECISIONS`.
        ranges: [2, dim], the lower and upper bound of each dimension; only for int8 and uint8.

    Returns:
        [N, dim], or [N, dim/8] for binary and ubinary, in the dtype of the precision.
    """
    if precision == "float32":
        return vectors
    if precision == "float16":
        return vectors.half()
    if precision in ("binary", "ubinary"):
        bits = (vectors > 0).reshape(len(vectors), vectors.shape[1] // 8, 8)
        powers = torch.tensor(
            [128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int16, device=vectors.device
        )
        packed = (bits * powers).sum(-1)  # [N, dim/8]
        return packed.to(torch.uint8) if precision == "ubinary" else (packed - 128).to(torch.int8)
    if ranges is None:
        largest = vectors.abs().amax(1, keepdim=True).clamp_min(1e-12)
        return (vectors * (127.0 / largest)).round().to(torch.int8)
    lower, upper = ranges[0].float(), ranges[1].float()
    codes = ((vectors - (lower + upper) / 2) / ((upper - lower) / 254)).round().clamp(-127, 127)
    return codes.to(torch.int8) if precision == "int8" else (codes + 128).to(torch.uint8)
