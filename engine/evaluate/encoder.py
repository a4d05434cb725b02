"""mteb's encoder interface on an Embedder: instructions before queries and symmetric texts, none before documents.

Instructions are read from the installed mteb, where a model's own come before a task's; none is copied here.
"""

from typing import Any

from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from lastword.embedder import Embedder
from lastword.weights import dtype_name

_SIMILARITIES = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}


class LastwordEncoder(AbsEncoder):  # type: ignore[misc]  # its types are not followed
    """An Embedder as mteb takes it.

    Args:
        embedder: the model.
        known_as: whose instructions to use, a hub id; one that mteb does not know gets the tasks' own.
    """

    def __init__(self, embedder: Embedder, known_as: str) -> None:
        self.model = embedder
        known = known_meta(known_as)
        self.prompts_dict = None if known is None else known.loader_kwargs.get("prompts_dict")
        self.mteb_model_meta = model_meta(embedder, known_as)

    def prompt(self, task_metadata: Any, prompt_type: PromptType | None) -> str:
        """What goes before each text: `Instruct: {task}`, a line break, `Query:`; nothing before documents."""
        if prompt_type == PromptType.document:
            return ""
        instruction = self.get_instruction(task_metadata, prompt_type)
        return f"Instruct: {instruction}\nQuery:" if instruction else ""

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002 (mteb's signature)
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        show_progress_bar: bool | None = None,
        **options: Any,  # noqa: ARG002 (batch_size: batches are cut by tokens)
    ) -> Any:
        """Embed all texts of a split: `inputs` gives batches with a "text" list."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(
            texts,
            prompt=self.prompt(task_metadata, prompt_type),
            show_progress_bar=show_progress_bar,
            convert_to_numpy=True,
        )


def known_meta(name: str) -> ModelMeta | None:
    """What mteb knows of a model, or None."""
    import mteb

    try:
        return mteb.get_model_meta(name)
    except KeyError:
        return None


def model_meta(embedder: Embedder, known_as: str) -> ModelMeta:
    """Describe the model so that mteb keeps results of other weights, dtypes, quantisation or widths apart."""
    info = embedder.info
    known = known_meta(known_as) or ModelMeta.create_empty({"name": _owned(known_as)})
    settings = {
        "engine": "lastword",
        "dtype": dtype_name(info.dtype),
        "dim": info.dim,
        "max_length": info.max_length,
    }
    if info.quantize is not None:  # a plain run's results stay where they have been
        settings["quantize"] = info.quantize
    return known.model_copy(
        update={
            "revision": info.files.revision or info.space_fingerprint(),
            "experiment_kwargs": settings,
            # None: mteb asks the Embedder
            "similarity_fn_name": _SIMILARITIES.get(info.spec.similarity),
        }
    )


def _owned(name: str) -> str:
    """A name of mteb's form, owner/name: a folder's own name for a folder."""
    parts = name.rstrip("/").split("/")
    return (
        name if len(parts) == 2 and all(part.strip(".") for part in parts) else f"local/{parts[-1]}"
    )
