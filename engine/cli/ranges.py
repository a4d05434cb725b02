"""Saved ranges: the smallest and largest value of every dimension, used to compute int8 and uint8 vectors.

The file is a safetensors file with one tensor `ranges` [2, dim] float32. Its metadata has the fingerprint of the space
of the vectors.
"""

import os
import stat
from collections.abc import Mapping
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lastword.cli.console import put
from lastword.errors import InputError, count

_MOST_BYTES = 1 << 26  # of an accepted file; two numbers per dimension take far fewer bytes


class Ranges:
    """Collects the smallest and largest value of each dimension over all given float32 vectors."""

    def __init__(self) -> None:
        self._ranges: Tensor | None = None

    def add(self, matrix: Tensor) -> None:
        """Widen the ranges to include every row of `matrix` [n, dim]."""
        low, high = matrix.float().aminmax(dim=0)
        if self._ranges is not None:
            low, high = torch.minimum(low, self._ranges[0]), torch.maximum(high, self._ranges[1])
        self._ranges = torch.stack((low, high))

    def save(self, stream: BinaryIO, name: str, metadata: Mapping[str, str]) -> None:
        """Write the ranges and `metadata` to `stream`; messages name the file by `name`.

        Raises:
            InputError: all vectors have the same value in some dimension, or the write failed.
        """
        assert self._ranges is not None  # a run without texts has ended with an error by now
        alike = int((self._ranges[1] <= self._ranges[0]).sum())
        if alike:
            raise InputError(
                name,
                "no ranges to save",
                got=f"texts with equal values in {count(alike, 'dimension')}",
                expected="different values in every dimension",
                remedy="Embed more texts.",
            )
        from lastword.weights import safetensors_header, tensor_bytes

        put(stream, safetensors_header({"ranges": ("F32", self._ranges.shape)}, metadata), name)
        put(stream, tensor_bytes(self._ranges), name)


def read_ranges(path: str, dim: int, space: str) -> Tensor:
    """Read ranges [2, dim] float32 and check that they were saved for the vector space with fingerprint `space`.

    Raises:
        InputError: the file holds no ranges for `dim` dimensions, holds ranges of another space, or was written by an
            older lastword.
        OSError: the file is missing.
    """
    status = os.stat(path)  # a missing file gives the same OSError here as for every other input
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
        regular = stat.S_ISREG(status.st_mode)
        raise InputError(
            path,
            "cannot be a file of ranges",
            got=f"{status.st_size:,} bytes" if regular else "a folder, device or pipe",
            expected=f"a file of at most {_MOST_BYTES:,} bytes, made by --save-ranges",
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            ranges: Tensor | None = file.get_tensor("ranges") if "ranges" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            path, "is not a safetensors file", remedy="Make the file with --save-ranges."
        ) from error
    if ranges is None:
        remedy = "Make the file with --save-ranges."
        raise InputError(path, "has no tensor 'ranges'", remedy=remedy)
    where = f"{path}: tensor 'ranges'"
    if ranges.dtype != torch.float32 or tuple(ranges.shape) != (2, dim):
        from lastword.weights import dtype_name

        got = f"{list(ranges.shape)} {dtype_name(ranges.dtype)}"
        raise InputError(where, "wrong shape or dtype", got=got, expected=f"[2, {dim}] float32")
    if not bool(torch.isfinite(ranges).all()) or bool((ranges[0] >= ranges[1]).any()):
        raise InputError(where, "holds values that are not ranges (not finite, or low >= high)")
    _check_space(path, metadata, space)
    return ranges


def ranges_fingerprint(ranges: Tensor) -> str:
    """Hash ranges to 16 hexadecimal digits, for the metadata of the vectors that are scaled by them."""
    from lastword.model_info import fingerprint

    return fingerprint(ranges=ranges.tolist())


def _check_space(path: str, metadata: Mapping[str, str], space: str) -> None:
    """Raise InputError for ranges of another vector space; a file that names no space is accepted on trust."""
    from lastword.model_info import FINGERPRINT_VERSION

    if "space" not in metadata:
        return
    remedy = "Make the file again with --save-ranges."
    if metadata.get("fingerprints") != str(FINGERPRINT_VERSION):
        raise InputError(path, "written by an older lastword", remedy=remedy)
    if metadata["space"] != space:
        raise InputError(
            path,
            "ranges of another vector space",
            got=f"space {metadata['space']}",
            expected=space,
            remedy=remedy,
        )
