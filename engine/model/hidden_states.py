"""The residual stream at each text's last token, layer by layer, for people who study the model.

It comes from the same forward that computes the vectors. This module knows nothing about texts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.errors import ConfigError
from lastword.model.qwen3 import Model


def layer_numbers(layers: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    """Resolve layers to numbers 0 … L; None stands for all, negative numbers count from the end.

    Raises:
        ConfigError: a layer does not exist, or the list is empty.
    """
    numbers = range(num_layers + 1)
    if layers is None:
        return tuple(numbers)
    if len(layers) == 0:
        expected = f"0 to {num_layers}, or None for all"
        raise ConfigError("layers", "none is named", got="[]", expected=expected)
    for layer in layers:
        if type(layer) is not int or not -len(numbers) <= layer <= num_layers:
            expected = f"0 to {num_layers}, or negative from the end"
            raise ConfigError("layers", "no such layer", got=repr(layer), expected=expected)
    return tuple(numbers[layer] for layer in layers)


def last_token_states(model: Model, forest: Forest, layers: Sequence[int]) -> Tensor:
    """Run the forward and collect the hidden states of each distinct text's last token.

    Args:
        model: the model.
        forest: the batch.
        layers: 0 for the token's embedding, i for the residual stream after layer i, L for after the final norm.

    Returns:
        [N', len(layers), C] fp32 on the CPU.
    """
    last = model.config.num_hidden_layers
    rows = torch.tensor(forest.final_rows)
    seen = {0: model.embedding[forest.ids[rows].to(model.embedding.device)].float().cpu()}

    def observe(layer: int, residual: Tensor) -> None:
        if layer + 1 in layers and layer + 1 < last:
            seen[layer + 1] = residual[rows.to(residual.device)].float().cpu()

    seen[last] = model.forward(forest, observe).float().cpu()
    return torch.stack([seen[layer] for layer in layers], dim=1)
