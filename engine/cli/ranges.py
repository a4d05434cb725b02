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
from lastword.cli.write import LAYOUTS, safetensors_header, tensor_bytes
from lastword.errors import InputError


class Ranges:
    """The ranges of the float32 vectors seen so far."""

    def __init__(self) -> None:
        self._ranges: Tensor | None = None

    def add(self, vector: Tensor) -> None:
        """Widen the ranges to hold `vector`."""
        vector = vector.float().cpu()
        if self._ranges is None:
            self._ranges = torch.stack((vector, vector))
        else:
            torch.minimum(self._ranges[0], vector, out=self._ranges[0])
            torch.maximum(self._ranges[1], vector, out=self._ranges[1])

    def save(self, stream: BinaryIO, name: str, metadata: Mapping[str, str]) -> None:
        """Write the file."""
        if self._ranges is None:
            raise InputError(f"{name}: no ranges to save; got 0 texts, expected at least 1")
        alike = int((self._ranges[1] <= self._ranges[0]).sum())
        if alike:
            raise InputError(
                f"{name}: no ranges to save; got texts that are equal in {alike} dimensions, "
                "expected different ones. Embed more texts"
            )
        header = safetensors_header("ranges", LAYOUTS["float32"], self._ranges.shape[1], metadata)
        put(stream, header(2) + tensor_bytes(self._ranges), name)


def read_ranges(path: str, dim: int, space: str) -> Tensor:
    """Read ranges and check that they belong to these vectors.

    Raises:   InputError where the file is not such a file, or is of another space.
    """
    os.stat(path)  # a missing file is the system's error, named as everywhere
    try:
        with safe_open(path, framework="pt") as file:
            theirs = (file.metadata() or {}).get("space", space)
            ranges: Tensor | None = file.get_tensor("ranges") if "ranges" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a safetensors file; {error}") from error
    if ranges is None:
        raise InputError(f"{path}: has no tensor 'ranges'. Make one with --save-ranges")
    if ranges.dtype != torch.float32 or tuple(ranges.shape) != (2, dim):
        got = f"{list(ranges.shape)} {str(ranges.dtype).removeprefix('torch.')}"
        raise InputError(f"{path}: tensor 'ranges': got {got}, expected [2, {dim}] float32")
    if not bool(torch.isfinite(ranges).all()) or bool((ranges[0] >= ranges[1]).any()):
        raise InputError(
            f"{path}: tensor 'ranges': got values that are no ranges (not finite, or low >= high)"
        )
    if theirs != space:
        raise InputError(
            f"{path}: ranges of other vectors; got space {theirs}, expected {space}. "
            "Make them anew with --save-ranges"
        )
    return ranges
