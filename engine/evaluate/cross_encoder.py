"""A Reranker with mteb's cross-encoder interface.

The instruction for a query is the query's own in the data set, else the task's, else the reranker's.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from mteb.models.model_meta import ModelMeta

from lastword.evaluate.encoder import known_meta, qualified_name, settings_meta
from lastword.reranker import Reranker

# Maximum pairs in one call: many, so that a query's documents are scored together whatever mteb's batch size is.
_PAIRS_AT_ONCE = 4096


class LastwordCrossEncoder:
    """An mteb cross-encoder that computes its scores with a Reranker.

    The scores are those of `Reranker.predict`, activation included, because some of mteb's metrics depend on more than
    the order.

    Args:
        reranker: the model.
        known_as: Hugging Face id whose metadata are used, if mteb knows it.
    """

    def __init__(self, reranker: Reranker, known_as: str) -> None:
        self.model = reranker
        empty = {"name": qualified_name(known_as), "model_type": ["cross-encoder"]}
        self._meta = known_meta(known_as) or ModelMeta.create_empty(empty)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The metadata, with the current settings, by which mteb tells the results of models apart."""
        info = self.model.info
        function = info.activation_fn
        name = getattr(function, "__name__", type(function).__name__)
        run = info.run_fingerprint()
        return settings_meta(self._meta, info, info.identity(), run, activation=name)

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        """Replace the metadata; mteb's wrappers use this to set its `experiment_kwargs`."""
        self._meta = meta

    def instruction(self, task_metadata: Any) -> str | None:
        """Return a task's instruction; if it has none, return None, which selects the reranker's own."""
        prompt = task_metadata.prompt
        if isinstance(prompt, dict):
            prompt = prompt.get("query")
        return prompt or None

    def predict(
        self,
        inputs1: Any,
        inputs2: Any,
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002 (mteb's signature)
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
        batch_size: int | None = None,  # noqa: ARG002 (batches are limited by tokens)
    ) -> Any:
        """Score the i-th query of `inputs1` with the i-th document of `inputs2`, for every i; return [N], fp32.

        Each batch in the inputs is a mapping with a list of texts, "text". If its queries have their own instructions,
        a batch also has the lists "instruction" and "query", and "text" combines the two.
        """
        usual = self.instruction(task_metadata)
        documents = (text for batch in inputs2 for text in batch["text"])
        pairs = (
            (instruction or usual, (query, document))
            for (instruction, query), document in zip(_queries(inputs1), documents, strict=True)
        )
        found = [torch.empty(0, dtype=torch.float32, device="cpu")]
        for instruction, same in groupby(pairs, itemgetter(0)):
            for group in _in_groups(pair for _, pair in same):
                how = {"instruction": instruction, "show_progress_bar": show_progress_bar}
                scores: Any = self.model.predict(group, **how)
                found.append(scores)
        return torch.cat(found).numpy()


def _queries(inputs: Any) -> Iterator[tuple[str | None, str]]:
    """Yield each query's own instruction, or None, and the query without the instruction."""
    for batch in inputs:
        texts = batch["text"]
        instructions = batch.get("instruction", [None] * len(texts))
        for text, instruction, alone in zip(
            texts, instructions, batch.get("query", texts), strict=True
        ):
            yield (instruction, alone) if instruction else (None, text)


def _in_groups(pairs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    group = []
    for pair in pairs:
        group.append(pair)
        if len(group) == _PAIRS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group
