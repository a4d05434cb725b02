"""Compute states with transformers, one text at a time without padding, for tests that compare lastword's with them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from helpers.small_models import INSTRUCTION, PREFIX, SUFFIX
from tokenizers import Tokenizer
from torch import Tensor

from lastword.batching.forest import plan_forests
from lastword.model.qwen3 import Model
from lastword.weights import Checkpoint, read_config

TOLERANCE = 2e-5  # lastword promises that normalised fp32 vectors never differ by more


def load_ours(folder: Path, quantize: str | None = None) -> Model:
    config = read_config(folder)
    return Model(Checkpoint(folder, config), config, torch.device("cpu"), torch.float32, quantize)


def load_theirs(folder: Path) -> torch.nn.Module:
    from transformers import Qwen3Model

    return Qwen3Model.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.inference_mode()
def their_states(
    model: torch.nn.Module, tokens: Sequence[Sequence[int]]
) -> tuple[Tensor, list[Tensor]]:
    """Return the final states [N, C], and for each layer the residual stream after it, at the last token [N, C]."""
    layers: list[list[Tensor]] = [[] for _ in model.layers]

    def keep(i: int):
        def hook(module, args, output):
            states = output[0] if isinstance(output, tuple) else output
            layers[i].append(states[0, -1])

        return hook

    hooks = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(model.layers)]
    finals = [model(torch.tensor([list(ids)])).last_hidden_state[0, -1] for ids in tokens]
    for hook in hooks:
        hook.remove()
    return torch.stack(finals), [torch.stack(states) for states in layers]


def our_states(
    model: Model, tokens: Sequence[Sequence[int]], *, budget: int = 4096, share: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """Return the same as `their_states`, computed by lastword."""
    size = (len(tokens), model.config.hidden_size)
    finals, layers = torch.empty(size), [torch.empty(size) for _ in model.layers]
    for forest in plan_forests(tokens, budget, share=share):
        rows = torch.tensor(forest.final_rows)

        def observe(i: int, states: Tensor, forest=forest, rows=rows) -> None:
            at_end = (
                states if states.shape[0] == len(rows) and i == len(layers) - 1 else states[rows]
            )
            layers[i][forest.texts] = at_end[forest.distinct]

        finals[forest.texts] = model.forward(forest, observe)[forest.distinct]
    return finals, layers


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference between the normalised rows."""
    return float((unit(a) - unit(b)).abs().max())


def first_wrong_layer(ours: list[Tensor], theirs: list[Tensor]) -> str:
    """Name the first layer whose states differ, for the message of a failed test."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if difference(a, b) > TOLERANCE:
            return f"first differs after layer {i}: {difference(a, b):.2e}"
    return "all layers agree: the final norm or pooling differs"


def their_ids(
    folder: Path,
    pairs: Iterable[tuple[str, str]],
    instruction: str = INSTRUCTION,
    max_length: int = 4096,
) -> list[list[int]]:
    """Return each pair's token ids as Qwen3-Reranker's model card makes them, from three parts tokenised separately."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    before, after = ids(PREFIX), ids(SUFFIX)
    room = max_length - len(before) - len(after)
    bodies = [f"<Instruct>: {instruction}\n<Query>: {q}\n<Document>: {d}" for q, d in pairs]
    return [before + ids(body)[:room] + after for body in bodies]


@torch.inference_mode()
def their_scores(folder: Path, kind: str, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-odds [N] that transformers computes for each list of token ids, one at a time."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    if kind == "classifier":
        model = AutoModelForSequenceClassification.from_pretrained(folder, **how).eval()
        return torch.stack([model(torch.tensor([ids])).logits[0, 0] for ids in tokens])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    model = AutoModelForCausalLM.from_pretrained(folder, **how).eval()
    logits = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in tokens])
    return logits[:, yes] - logits[:, no]
