"""The tensors of a checkpoint: names, shapes and dtypes are checked first; the data is read only when needed.

A layer's tensors are memory-mapped. The weights for queries, keys and values are copied into one fused weight; any
other matrix that is already in the right dtype stays a view of its file until the engine has packed or copied it, or
moved it to a GPU. So loading takes no more memory than the loaded weights and one layer.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lastword.errors import InputError, WeightsError, list_some
from lastword.weights.config import ModelConfig
from lastword.weights.files.dtypes import WEIGHT_DTYPES
from lastword.weights.files.file_tensor import map_tensor
from lastword.weights.files.header import TensorInfo
from lastword.weights.files.reading import read_error
from lastword.weights.files.shards import read_tensors
from lastword.weights.json_fields import show_value
from lastword.weights.tensor_names import (
    EMBEDDING,
    LM_HEAD,
    NORM,
    SCORE,
    expected_shapes,
    find_prefix,
    refuse_mixed_prefixes,
)

_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's weights, with query, key and value fused; the biases are None if the config has none."""

    input_norm: Tensor  # [C]
    qkv: Tensor  # [(H + 2·KH)·D, C]
    qkv_bias: Tensor | None  # [(H + 2·KH)·D]
    q_norm: Tensor  # [D]
    k_norm: Tensor  # [D]
    o: Tensor  # [C, H·D]
    o_bias: Tensor | None  # [C]
    post_norm: Tensor  # [C]
    gate: Tensor  # [F, C]
    up: Tensor  # [F, C]
    down: Tensor  # [C, F]


class WeightsSource(Protocol):
    """What the engine loads weights from: a `Checkpoint`, or any other object with these members."""

    @property
    def num_parameters(self) -> int:
        """Number of the model's parameters."""

    @property
    def num_bytes(self) -> int:
        """Number of bytes that the weights take in the files."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Safetensors names of the stored dtypes, sorted."""

    @property
    def fingerprint(self) -> str:
        """Identifier of the weights: equal weights have equal fingerprints."""

    def embedding(self) -> Tensor:
        """Return the token embeddings `[V, C]`."""

    def norm(self) -> Tensor:
        """Return the final norm's weight `[C]`."""

    def layer(self, index: int, dtype: torch.dtype) -> LayerWeights:
        """Return the weights of layer `index`, from 0 to L - 1, converted to `dtype`."""


class Checkpoint:
    """The weights of one model folder; the constructor checks all headers and reads no tensor.

    Args:
        folder: the model's folder.
        config: the model's configuration, which determines the expected names and shapes.
        stored: the result of `read_tensors` for the folder; None to call it here.
        reranker: whether the folder may also have a `score.weight`, the head of a classifier.

    Raises:
        WeightsError: a file or tensor is missing or damaged, does not match the config, or has an unsupported dtype.
    """

    num_parameters: int
    num_bytes: int
    dtypes: tuple[str, ...]

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        *,
        stored: Mapping[str, TensorInfo] | None = None,
        reranker: bool = False,
    ) -> None:
        self.folder, self.config = Path(folder), config
        found = read_tensors(self.folder) if stored is None else stored
        heads = {LM_HEAD, SCORE} if reranker else {LM_HEAD}
        self._heads = {name: info for name, info in found.items() if name in heads}
        kept = {name: info for name, info in found.items() if name not in heads}
        self._tensors = _check_tensors(self.folder, config, kept)
        infos = self._tensors.values()
        self.num_parameters = sum(math.prod(info.shape) for info in infos)
        self.num_bytes = sum(info.num_bytes for info in infos)
        self.dtypes = tuple(sorted({info.dtype for info in infos}))

    def names(self) -> tuple[str, ...]:
        """Return the tensors' names without the prefix `model.`, sorted; heads are left out."""
        return tuple(sorted(self._tensors))

    def embedding(self) -> Tensor:
        """Return the token embeddings `[V, C]` in their stored dtype, as a view of the mapped file."""
        return map_tensor(self._tensors[EMBEDDING], EMBEDDING)

    def norm(self) -> Tensor:
        """Return the final norm's weight `[C]` in its stored dtype, in newly allocated memory."""
        return map_tensor(self._tensors[NORM], NORM).clone()

    def head_rows(self, name: str, rows: Sequence[int], count: int) -> Tensor | None:
        """Read only some rows of a head, which is the tensor `lm_head.weight` or `score.weight`.

        Args:
            name: the tensor's name.
            rows: the indices of the rows to read.
            count: the number of rows that the tensor must have.

        Returns:
            [len(rows), C] fp32, or None if there is no such tensor.

        Raises:
            WeightsError: the tensor cannot be read, or has the wrong shape or dtype.
        """
        info = self._heads.get(name)
        if info is None:
            return None
        _check_tensor(info, name, (count, self.config.hidden_size))
        return map_tensor(info, name)[list(rows)].float()

    def layer(self, index: int, dtype: torch.dtype) -> LayerWeights:
        """Read layer `index`, from 0 to L - 1.

        Args:
            index: the layer.
            dtype: the dtype to convert to.

        Returns:
            The layer's weights. Matrices stored in `dtype`, except the fused one, are views of the mapped file
            (`map_tensor`); all other tensors are in newly allocated memory.

        Raises:
            InputError: the model has no layer `index`.
            WeightsError: a tensor cannot be read, or its file has changed.
        """
        if not 0 <= index < self.config.num_hidden_layers:
            last = self.config.num_hidden_layers - 1
            where = f"{self.folder}: layer"
            raise InputError(where, "out of range", got=str(index), expected=f"0 to {last}")

        def read(*names: str) -> Tensor:
            return self._read_fused([f"layers.{index}.{name}" for name in names], dtype)

        def view(name: str) -> Tensor:
            name = f"layers.{index}.{name}"
            return map_tensor(self._tensors[name], name).to(dtype)

        projections = [f"self_attn.{letter}_proj" for letter in "qkv"]
        biased = self.config.attention_bias
        return LayerWeights(
            input_norm=read("input_layernorm.weight"),
            qkv=read(*(f"{name}.weight" for name in projections)),
            qkv_bias=read(*(f"{name}.bias" for name in projections)) if biased else None,
            q_norm=read("self_attn.q_norm.weight"),
            k_norm=read("self_attn.k_norm.weight"),
            o=view("self_attn.o_proj.weight"),
            o_bias=read("self_attn.o_proj.bias") if biased else None,
            post_norm=read("post_attention_layernorm.weight"),
            gate=view("mlp.gate_proj.weight"),
            up=view("mlp.up_proj.weight"),
            down=view("mlp.down_proj.weight"),
        )

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 hash over the name, dtype, shape and up to three 4 KiB samples of each tensor; heads are left out.

        Returns:
            64 hex digits that depend neither on the sharding nor on the key prefix.
        """
        total = hashlib.sha256()
        for name in self.names():
            info = self._tensors[name]
            total.update(f"{name} {info.dtype} {list(info.shape)}\n".encode())
            total.update(_hash_samples(info))
        return total.hexdigest()

    def _read_fused(self, names: list[str], dtype: torch.dtype) -> Tensor:
        """Concatenate tensors along the first dimension into a new tensor of this dtype."""
        infos = [self._tensors[name] for name in names]
        rows = sum(info.shape[0] for info in infos)
        whole = torch.empty((rows, *infos[0].shape[1:]), dtype=dtype, device="cpu")
        start = 0
        for name, info in zip(names, infos, strict=True):
            whole[start : start + info.shape[0]].copy_(map_tensor(info, name))
            start += info.shape[0]
        return whole


def _check_tensors(
    folder: Path, config: ModelConfig, stored: dict[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Check that the stored tensors are exactly the expected ones, by name, shape and dtype."""
    prefix = find_prefix(folder, stored)
    expected = {prefix + name: shape for name, shape in expected_shapes(config).items()}
    missing, extra = expected.keys() - stored.keys(), stored.keys() - expected.keys()
    if missing:
        refuse_mixed_prefixes(folder, stored, prefix)
        what = f"{len(missing)} of {len(expected)} tensors missing: {list_some(missing)}"
        raise WeightsError(str(folder), what)
    if extra:
        raise WeightsError(str(folder), f"unexpected tensors ({len(extra)}): {list_some(extra)}")
    for name, shape in expected.items():
        _check_tensor(stored[name], name, shape)
    return {name.removeprefix(prefix): info for name, info in stored.items()}


def _check_tensor(info: TensorInfo, name: str, shape: tuple[int, ...]) -> None:
    where = f"{info.file}: tensor {name}"
    if info.shape != shape:
        got, wanted = show_value(info.shape), show_value(shape)
        raise WeightsError(where, "wrong shape", got=got, expected=wanted)
    if info.dtype not in WEIGHT_DTYPES:
        raise WeightsError(where, "wrong dtype", got=info.dtype, expected="F32, BF16 or F16")


def _hash_samples(info: TensorInfo) -> bytes:
    """Hash the first, middle and last 4 KiB of a tensor; a tensor of at most 4 KiB is hashed whole."""
    digest = hashlib.sha256()
    middle = max(0, (info.num_bytes - _SAMPLE_BYTES) // 2)
    last = max(0, info.num_bytes - _SAMPLE_BYTES)
    try:
        with info.open() as file:
            for offset in sorted({0, middle, last}):
                file.seek(info.start + offset)
                digest.update(file.read(min(_SAMPLE_BYTES, info.num_bytes - offset)))
    except OSError as problem:
        raise read_error(info.file, problem) from None
    return digest.digest()
