"""Make a model with a real model's shape and random weights, directly on the device, without a checkpoint.

The model's tokenizer has one token for each common word, so texts of `workloads` have as many tokens as words.
"""

from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lastword.bench.checkpoint import make_checkpoint, word_tokenizer
from lastword.bench.shapes import VOCABULARY, sizes_of
from lastword.embedder import Embedder
from lastword.weights import LayerWeights, ModelConfig, dtype_name
from lastword.weights.files.dtypes import safetensors_name
from lastword.weights.files.shards import SINGLE
from lastword.weights.tensor_names import expected_shapes

_POSITIONS = 32_768
_SEED = 0
_OUTLIER_FACTOR = 20.0


class RandomWeights:
    """A `WeightsSource` with random weights of a config's shapes; it reads no file.

    Args:
        config: a config without biases.
        device: device on which the weights are made.
        dtype: dtype of the weights.
        outliers: number of channels of the residual stream whose values are 20 times as large as those of the other
            channels; trained models have such channels too.
    """

    def __init__(
        self, config: ModelConfig, device: torch.device, dtype: torch.dtype, *, outliers: int = 0
    ) -> None:
        self.num_parameters = sum(prod(shape) for shape in expected_shapes(config).values())
        self.num_bytes = self.num_parameters * dtype.itemsize
        self.dtypes = (safetensors_name(dtype) or dtype_name(dtype),)
        self.fingerprint = f"random: seed {_SEED}, {outliers} outliers, {device.type}, {dtype}"
        self._config, self._device, self._dtype, self._outliers = config, device, dtype, outliers
        self._generator = torch.Generator(device).manual_seed(_SEED)

    def embedding(self) -> Tensor:
        table = self._normal(self._config.vocab_size, self._config.hidden_size)
        if self._outliers:
            table[:, :: table.shape[1] // self._outliers] *= _OUTLIER_FACTOR
        return table

    def norm(self) -> Tensor:
        return self._norm(self._config.hidden_size)

    def layer(self, index: int, dtype: torch.dtype) -> LayerWeights:  # noqa: ARG002
        """Make one layer; its matrices preserve the magnitude of their inputs."""
        c = self._config
        C, F, D = c.hidden_size, c.intermediate_size, c.head_dim
        queries, heads = (
            c.num_attention_heads * D,
            c.num_attention_heads + 2 * c.num_key_value_heads,
        )
        return LayerWeights(
            input_norm=self._norm(C),
            qkv=self._normal(heads * D, C).div_(C**0.5),
            qkv_bias=None,
            q_norm=self._norm(D),
            k_norm=self._norm(D),
            o=self._normal(C, queries).div_(queries**0.5),
            o_bias=None,
            post_norm=self._norm(C),
            gate=self._normal(F, C).div_(C**0.5),
            up=self._normal(F, C).div_(C**0.5),
            down=self._normal(C, F).div_(F**0.5),
        )

    def _norm(self, size: int) -> Tensor:
        return self._normal(size).mul_(0.1).add_(1)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device, dtype=self._dtype)


def random_embedder(
    folder: Path,
    model: str,
    layers: int | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    quantize: str | None = None,
    cuda_graphs: bool = True,
    outliers: int = 0,
) -> Embedder:
    """Write a config and tokenizer into a folder, and open the folder as a model with random weights.

    Args:
        folder: the folder to write to.
        model: a name of `SIZES`.
        layers: number of layers; None for the model's own.
        device: as for `Embedder`.
        dtype: as for `Embedder`.
        quantize: as for `Embedder`.
        cuda_graphs: as for `Embedder`.
        outliers: as for `RandomWeights`.

    Returns:
        The opened model.
    """
    make_checkpoint(
        folder,
        **sizes_of(model, layers),
        vocab_size=VOCABULARY if model != "tiny" else None,
        tokenizer=word_tokenizer(),
        max_position_embeddings=_POSITIONS,
        weights=False,
    )
    (folder / SINGLE).touch()  # a model folder without weights is refused
    return Embedder(
        folder,
        device=device,
        dtype=dtype,
        quantize=quantize,
        cuda_graphs=cuda_graphs,
        open_checkpoint=lambda _, config: RandomWeights(config, device, dtype, outliers=outliers),
    )
