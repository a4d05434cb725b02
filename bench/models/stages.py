"""The stages of `encode` as separate functions: groups of texts, token ids, batches, the forward.

Each function takes an Embedder whose model runs in this process, and does the work of one stage.
"""

from collections.abc import Iterable, Sequence

from lastword.batching.forest import Forest, plan_forests
from lastword.embedder import Embedder
from lastword.model.qwen3 import Model
from lastword.runtime.runner import InProcess
from lastword.text.groups import split_into_groups


def model_of(embedder: Embedder) -> Model:
    """Return the embedder's model, which runs in this process on one device."""
    runner = embedder.loop.runner
    assert isinstance(runner, InProcess)
    return runner.model


def groups_of(embedder: Embedder, texts: Sequence[str]) -> list[list[str]]:
    """Split texts into groups; the texts of a group are tokenised together and share batches."""
    small_first = embedder.loop.runner.ahead
    return [group for _, group in split_into_groups(iter(texts), small_first=small_first)]


def ids_of(embedder: Embedder, groups: Iterable[Sequence[str]]) -> list[list[list[int]]]:
    """Tokenise each group."""
    encode, prompt = embedder.loop.tokenizer.encode, embedder.resolve_prompt()
    return [encode(group, embedder.max_length, prompt=prompt).ids for group in groups]


def forests_of(embedder: Embedder, ids: Iterable[Sequence[Sequence[int]]]) -> list[Forest]:
    """Make the batches from the token ids of each group."""
    budget = embedder.max_batch_tokens
    return [forest for each in ids for forest in plan_forests(each, budget)]


def batches_of(embedder: Embedder, texts: Sequence[str]) -> list[Forest]:
    """Turn texts into the batches that the forward takes: form groups, tokenise them, and build the forests."""
    return forests_of(embedder, ids_of(embedder, groups_of(embedder, texts)))


def forward(embedder: Embedder, forests: Iterable[Forest]) -> None:
    """Run the forward alone (on a GPU with its packing): no tokenising, building of forests or postprocessing."""
    model = model_of(embedder)
    for forest in forests:
        model.forward(forest)
