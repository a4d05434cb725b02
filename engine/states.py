"""The residual stream at each text's last token, layer by layer: for people who look inside the model.

Uses the forward that gives the vectors, so what it shows is what was computed. Knows no texts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lastword.errors import ConfigError
from lastword.forest import Forest, plan_forests
from lastword.model import Model


def layer_numbers(layers: Sequence[int] | None, num_layers: int) -> list[int]:
    """Resolve layers to 0 … L; None stands for all, negative ones count from the end.

    Raises:   ConfigError for one that is not there.
    """
    numbers = range(num_layers + 1)
    if layers is None:
        return list(numbers)
    for layer in layers:
        if type(layer) is not int or not -len(numbers) <= layer <= num_layers:
            raise ConfigError(
                f"layers: no such layer; got {layer!r}, expected 0 to {num_layers}, or negative from the end."
            )
    return [numbers[layer] for layer in layers]


def last_token_states(
    model: Model, tokens: Sequence[Sequence[int]], max_batch_tokens: int, layers: Sequence[int]
) -> Tensor:
    """Collect what the forward computes for the last token of each token list.

    Args:     layers: 0 the token's embedding, i the residual stream after layer i, L after the final norm.
    Returns:  [N, len(layers), C] fp32 on the CPU.
    """
    states = torch.empty(len(tokens), len(layers), model.config.hidden_size)
    for forest in plan_forests(tokens, max_batch_tokens):
        states[forest.texts] = _of_forest(model, forest, layers)
    return states


def _of_forest(model: Model, forest: Forest, layers: Sequence[int]) -> Tensor:
    last = model.config.num_hidden_layers
    rows = torch.tensor(forest.final_rows)
    seen = {0: model.embedding[forest.ids[rows].to(model.embedding.device)].float().cpu()}

    def observe(layer: int, residual: Tensor) -> None:
        if layer + 1 in layers and layer + 1 < last:
            seen[layer + 1] = residual[rows.to(residual.device)].float().cpu()

    seen[last] = model.forward(forest, observe).float().cpu()
    return torch.stack([seen[layer] for layer in layers], dim=1)[forest.distinct]
