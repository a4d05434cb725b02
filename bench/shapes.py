"""The sizes of the models that random checkpoints and benchmarks imitate. This module imports nothing heavy."""

from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """One model's sizes, under the names that config.json gives them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


SIZES = {
    "tiny": Sizes(64, 128, 2, 4, 2, 32),
    "0.6B": Sizes(1024, 3072, 28, 16, 8, 128),
    "4B": Sizes(2560, 9728, 36, 32, 8, 128),
    "8B": Sizes(4096, 12288, 36, 32, 8, 128),
}
VOCABULARY = 151_669  # number of token ids of Qwen3's tokenizer


def sizes_of(model: str, layers: int | None = None) -> dict[str, Any]:
    """Return a model's sizes by name, with `layers` layers if given."""
    sizes = SIZES[model]._asdict()
    return sizes if layers is None else sizes | {"num_hidden_layers": layers}
