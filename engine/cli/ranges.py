"""Saved ranges: the smallest and largest value of every dimension, for int8 and uint8 codes.

A safetensors file with one tensor `ranges` [2, dim] float32, and the space it belongs to.
"""

import os
from collections.abc import Mapping
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lastword.cli.console import put
from lastword.errors import InputError


class Ranges:
    """The ranges of the float32 vectors seen so far."""

    def __init__(self) -> None:
        self._ranges: Tensor | None = None

    def add(self, matrix: Tensor) -> None:
        """Widen the ranges to hold every row of `matrix`."""
        low, high = matrix.float().aminmax(dim=0)
        if self._ranges is not None:
            low, high = torch.minimum(low, self._ranges[0]), torch.maximum(high, self._ranges[1])
        self._ranges = torch.stack((low, high))

    def save(self, stream: BinaryIO, name: str, metadata: Mapping[str, str]) -> None:
        """Write the file."""
        if self._ranges is None:
            raise InputError(name, "no ranges to save", got="0 texts", expected="at least 1")
        alike = int((self._ranges[1] <= self._ranges[0]).sum())
        if alike:
            raise InputError(
                name,
                "no ranges to save",
                got=f"texts that are equal in {alike} dimensions",
                expected="different ones",
                remedy="Embed more texts.",
            )
        from lastword.weights import safetensors_header, tensor_bytes

        put(stream, safetensors_header({"ranges": ("F32", self._ranges.shape)}, metadata), name)
        put(stream, tensor_bytes(self._ranges), name)


def read_ranges(path: str, dim: int, space: str) -> Tensor:
    """Read ranges and check that they belong to these vectors.

    Raises:
        InputError: the file is not such a file, is of another space, or its space was named by an older lastword.
    """
    os.stat(path)  # a missing file is the system's error, named as everywhere
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            ranges: Tensor | None = file.get_tensor("ranges") if "ranges" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(path, f"is not a safetensors file ({error})") from error
    if ranges is None:
        raise InputError(path, "has no tensor 'ranges'", remedy="Make one with --save-ranges.")
    where = f"{path}: tensor 'ranges'"
    if ranges.dtype != torch.float32 or tuple(ranges.shape) != (2, dim):
        from lastword.weights import dtype_name

        got = f"{list(ranges.shape)} {dtype_name(ranges.dtype)}"
        raise InputError(where, "wrong shape or dtype", got=got, expected=f"[2, {dim}] float32")
    if not bool(torch.isfinite(ranges).all()) or bool((ranges[0] >= ranges[1]).any()):
        raise InputError(where, "values that are no ranges (not finite, or low >= high)")
    _check_space(path, metadata, space)
    return ranges


def _check_space(path: str, metadata: Mapping[str, str], space: str) -> None:
    """Refuse ranges of other vectors; a file that names no space is the caller's to answer for."""
    from lastword.model_info import FINGERPRINT_VERSION

    if "space" not in metadata:
        return
    remedy = "Make them again with --save-ranges."
    if metadata.get("fingerprints") != str(FINGERPRINT_VERSION):
        raise InputError(path, "written by an older lastword", remedy=remedy)
    if metadata["space"] != space:
        raise InputError(
            path,
            "ranges of other vectors",
            got=f"space {metadata['space']}",
            expected=space,
            remedy=remedy,
        )
