"""An Embedder with mteb's encoder interface.

Instructions are put before queries and before texts of symmetric tasks, not before documents. They are read from the
installed mteb: a model's own instruction if there is one, else the task's. None is copied here.
"""

from typing import Any

from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from lastword.embedder import Embedder
from lastword.weights import dtype_name

_SIMILARITIES = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}


class LastwordEncoder(AbsEncoder):  # type: ignore[misc]  # mypy skips this library
    """An mteb encoder that computes its vectors with an Embedder.

    Args:
        embedder: the model.
        known_as: Hugging Face id whose instructions to use; an id unknown to mteb gets the tasks' own.
    """

    def __init__(self, embedder: Embedder, known_as: str) -> None:
        self.model = embedder
        known = known_meta(known_as)
        self.prompts_dict = None if known is None else known.loader_kwargs.get("prompts_dict")
        self.mteb_model_meta = model_meta(embedder, known_as)

    def prompt(self, task_metadata: Any, prompt_type: PromptType | None) -> str:
        """Return the prompt of a task: `Instruct: {instruction}`, a line break and `Query:`; "" for documents."""
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
        """Embed all texts of a split; each batch in `inputs` is a mapping whose key "text" holds a list of texts."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(
            texts,
            prompt=self.prompt(task_metadata, prompt_type),
            show_progress_bar=show_progress_bar,
            convert_to_numpy=True,
        )


def known_meta(name: str) -> ModelMeta | None:
    """Return mteb's own metadata of a model, or None if mteb does not know it."""
    import mteb

    try:
        return mteb.get_model_meta(name)
    except KeyError:
        return None


def model_meta(embedder: Embedder, known_as: str) -> ModelMeta:
    """Return metadata by which mteb keeps results of different weights, dtypes, quantisation and dimensions apart."""
    info = embedder.info
    known = known_meta(known_as) or ModelMeta.create_empty({"name": _qualified_name(known_as)})
    settings = {
        "engine": "lastword",
        "dtype": dtype_name(info.dtype),
        "dim": info.dim,
        "max_length": info.max_length,
    }
    if (
        info.quantize is not None
    ):  # otherwise results saved by versions without `quantize` are still found
        settings["quantize"] = info.quantize
    return known.model_copy(
        update={
            "revision": info.files.revision or info.space_fingerprint(),
            "experiment_kwargs": settings,
            # None: mteb calls the Embedder's own similarity
            "similarity_fn_name": _SIMILARITIES.get(info.spec.similarity),
        }
    )


def _qualified_name(name: str) -> str:
    """Return a name in the form owner/name that mteb expects; a folder becomes local/NAME."""
    parts = name.rstrip("/").split("/")
    return (
        name if len(parts) == 2 and all(part.strip(".") for part in parts) else f"local/{parts[-1]}"
    )
