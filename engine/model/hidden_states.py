"""The hidden states of each text's last token after each layer, for people who study the model.

The states come from the same forward that computes the vectors. This module knows nothing about texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import SupportsIndex

import torch
from torch import Tensor

from lastword.arguments import as_integer, short_repr
from lastword.batching.forest import Forest
from lastword.errors import ConfigError
from lastword.kernels.caller_settings import integers
from lastword.model.qwen3 import Model


def layer_numbers(layers: Iterable[SupportsIndex] | None, num_layers: int) -> tuple[int, ...]:
    """Return `layers` as numbers from 0 to L = `num_layers`; None means all, and negative numbers count from the end.

    Raises:
        ConfigError: a layer does not exist, or `layers` is empty or not an ordered collection of integers.
    """
    numbers = range(num_layers + 1)
    if layers is None:
        return tuple(numbers)
    expected = f"0 to {num_layers}, or None for all"
    try:
        given = () if isinstance(layers, AbstractSet | Mapping) else tuple(layers)
    except TypeError:  # a single number, too, cannot be iterated over
        given = ()
    if not given:
        what = "none is named" if isinstance(layers, list | tuple) else "not a list of layers"
        raise ConfigError("layers", what, got=short_repr(layers), expected=expected)
    expected, what = f"0 to {num_layers}, or negative from the end", "no such layer"
    low = -len(numbers)
    checked = [
        as_integer(n, "layers", low, num_layers, expected=expected, what=what) for n in given
    ]
    return tuple(numbers[layer] for layer in checked)


def last_token_states(model: Model, forest: Forest, layers: Sequence[int]) -> Tensor:
    """Run the forward and collect the hidden states of each distinct text's last token.

    Args:
        model: the model.
        forest: the batch.
        layers: 0 is the token embedding, i < L the residual stream after layer i, L the state after the final norm.

    Returns:
        [N', len(layers), C], fp32, on the CPU.
    """
    last = model.config.num_hidden_layers
    rows = integers(forest.final_rows)
    seen = {0: model.embedding[forest.ids[rows].to(model.embedding.device)].float().cpu()}

    def observe(layer: int, residual: Tensor) -> None:
        if layer + 1 in layers and layer + 1 < last:
            seen[layer + 1] = residual[rows.to(residual.device)].float().cpu()

    seen[last] = model.forward(forest, observe).float().cpu()
    return torch.stack([seen[layer] for layer in layers], dim=1)
