"""How stored vectors were made, according to their metadata; whether a model's queries can be compared with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lastword.cli.write import ELEMENT_TYPES, ElementType
from lastword.errors import InputError, count

if TYPE_CHECKING:
    from torch import Tensor

    from lastword.model_info import ModelInfo

_AGAIN = "Embed the texts again."


class QueryFormat(NamedTuple):
    """How queries are embedded to be compared with stored vectors; `unit` says whether the vectors have length 1."""

    dim: int
    normalize: bool
    unit: bool


@dataclass(frozen=True, slots=True)
class Made:
    """The settings that stored vectors were made with.

    Args:
        where: the file or folder, for messages.
        space: the fingerprint of the vectors' space.
        model: the name of the model.
        dim: the number of dimensions.
        precision: a key of `ELEMENT_TYPES`.
        ranges: the fingerprint of the ranges; None if there are none.
    """

    where: str
    space: str
    model: str
    dim: int
    precision: str
    ranges: str | None

    @staticmethod
    def of(metadata: Mapping[str, object], where: str) -> "Made":
        """Read the metadata that `embed` wrote.

        Raises:
            InputError: the metadata is damaged or incomplete, or its fingerprints are of another version.
        """
        from lastword.model_info import FINGERPRINT_VERSION

        version = str(metadata.get("fingerprints"))
        if version != str(FINGERPRINT_VERSION):
            raise InputError(
                where,
                "fingerprints of another version of lastword",
                got=version,
                expected=str(FINGERPRINT_VERSION),
                remedy=_AGAIN,
            )
        dim, precision = str(metadata.get("dim")), metadata.get("precision")
        texts = [metadata.get(name) for name in ("space", "model")]
        ranges = metadata.get("ranges")
        if (
            not (dim.isascii() and dim.isdecimal() and len(dim) < 7 and int(dim))
            or precision not in ELEMENT_TYPES
            or int(dim) % ELEMENT_TYPES[str(precision)].packed
            or not all(isinstance(each, str) for each in texts)
            or not isinstance(ranges, str | None)
        ):
            raise InputError(where, "its metadata is damaged", remedy=_AGAIN)
        if precision == "uint8" and ranges is None:
            what = "made by an earlier version of lastword, which did not record the --ranges"
            raise InputError(where, what, got="uint8 without ranges", remedy=_AGAIN)
        return Made(where, str(texts[0]), str(texts[1]), int(dim), str(precision), ranges)

    @property
    def layout(self) -> ElementType:
        """How each element is stored."""
        return ELEMENT_TYPES[self.precision]

    @property
    def width(self) -> int:
        """The number of stored elements of a vector."""
        return self.dim // self.layout.packed

    @property
    def in_words(self) -> str:
        """The vectors' space, model and number of dimensions, in words."""
        return f"space {self.space} of {self.model} with {count(self.dim, 'dimension')}"

    def check_alike(self, other: "Made") -> None:
        """Check that these vectors and the `other` ones can be searched in the same call.

        Raises:
            InputError: their spaces, precisions or ranges differ.
        """
        ranges = (f"ranges {made.ranges or 'none'}" for made in (self, other))
        for what, own, others in (
            ("spaces", self.in_words, other.in_words),
            ("precisions", self.precision, other.precision),
            ("ranges", *ranges),
        ):
            if own != others and (what != "spaces" or self.space != other.space):
                raise InputError(
                    other.where,
                    f"vectors of different {what} cannot be searched together",
                    got=others,
                    expected=f"{own}, as in {self.where}",
                    remedy="Search them in separate calls.",
                )

    def check_ranges(self, ranges: "Tensor | None", path: str | None) -> None:
        """Check that ranges from a file are those that the vectors were made with.

        Args:
            ranges: [2, dim]; None if none are given.
            path: the file of the ranges; None if none is given.

        Raises:
            InputError: the ranges are missing, not needed, or different.
        """
        from lastword.cli.ranges import ranges_fingerprint

        if self.ranges is None and ranges is None:
            return
        if ranges is None:
            what = f"{self.precision} vectors need the ranges that they were made with"
            remedy = "Name the file with --ranges, as for lastword embed."
            raise InputError(self.where, what, remedy=remedy)
        given = ranges_fingerprint(ranges)
        if given != self.ranges:
            raise InputError(
                str(path),
                "are not the ranges that the vectors were made with",
                got=f"ranges {given}",
                expected=f"{self.ranges or 'none'}, as in {self.where}",
                remedy="Leave --ranges out." if self.ranges is None else "Name the right file.",
            )

    def query_format(self, info: "ModelInfo", dim: int | None) -> QueryFormat:
        """Return how a model must embed queries for these vectors.

        Args:
            info: the model.
            dim: the number of dimensions that the user asks for, or None.

        Raises:
            InputError: `dim` is not the stored vectors', or the model's vectors belong to another space.
        """
        if dim is not None and dim != self.dim:
            expected = f"{self.dim}, as in {self.where}"
            remedy = "Leave it out."
            what = "differs from the stored vectors"
            raise InputError("--dim", what, got=str(dim), expected=expected, remedy=remedy)
        if self.dim <= info.config.hidden_size:
            for normalize in (False, True):
                if info.space_fingerprint(self.dim, normalize_embeddings=normalize) == self.space:
                    wanted = info.vector_format(self.dim, normalize_embeddings=normalize)
                    return QueryFormat(self.dim, normalize, wanted.normalize)
        own = min(self.dim, info.config.hidden_size)
        raise InputError(
            self.where,
            "vectors of another model or other settings",
            got=self.in_words,
            expected=f"space {info.space_fingerprint(own)} of {info.name} with {count(own, 'dimension')}",
            remedy="Name the model that made them with --model, or embed the texts again.",
        )
