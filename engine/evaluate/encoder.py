"""An Embedder with mteb's encoder interface.

Queries, and the texts of symmetric tasks, get an instruction; documents do not. Instructions are read from the
installed mteb: the model's own instruction for the task, else the task's.
"""

import json
from typing import Any

from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from lastword.embedder import Embedder
from lastword.encode_options import Precision
from lastword.errors import ConfigError
from lastword.model_info import OpenedModel
from lastword.weights import dtype_name

_SIMILARITIES = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}


class LastwordEncoder(AbsEncoder):  # type: ignore[misc]  # mypy skips this library
    """An mteb encoder that computes its vectors with an Embedder.

    Args:
        embedder: the model.
        known_as: Hugging Face id of the model whose instructions are used. If mteb does not know it, the tasks' own
            instructions are used.
    """

    def __init__(self, embedder: Embedder, known_as: str) -> None:
        self.model = embedder
        known = known_meta(known_as)
        self.prompts_dict = None if known is None else known.loader_kwargs.get("prompts_dict")
        self._meta = known or ModelMeta.create_empty({"name": qualified_name(known_as)})

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The metadata, with the current settings, by which mteb's caches tell models apart; see `settings_meta`."""
        info = self.model.info
        # Vectors depend on the model's own instructions, so these belong in the fingerprint. A task's own instruction,
        # used if the model has none, does not: mteb stores results and vectors by task too.
        own = self.prompts_dict
        prompts = json.dumps(own, sort_keys=True, default=str) if own else ""
        run = info.run_fingerprint(prompts)
        meta = settings_meta(self._meta, info, info.space_fingerprint(), run, dim=info.dim)
        # with None, mteb calls the Embedder's own similarity
        similarity = _SIMILARITIES.get(info.spec.similarity)
        return meta.model_copy(update={"similarity_fn_name": similarity})

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        """Replace the metadata; mteb's wrappers use this to set its `experiment_kwargs`."""
        self._meta = meta

    def prompt(self, task_metadata: Any, prompt_type: PromptType | None) -> str:
        """Return `Instruct: {instruction}`, a line break and `Query:`; "" for documents, or without an instruction."""
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
        batch_size: int | None = None,  # noqa: ARG002 (batches are limited by tokens)
        precision: Precision = "float32",
    ) -> Any:
        """Embed all texts of a split. Each batch in `inputs` is a mapping whose value for "text" is a list of texts.

        Raises:
            ConfigError: the precision is binary or ubinary, whose packed bits mteb cannot compare.
        """
        if precision in ("binary", "ubinary"):
            raise ConfigError(
                "precision",
                "mteb cannot compare packed bits",
                got=repr(precision),
                expected="'float32', 'float16' or 'int8'",
                remedy="Wrap the encoder in mteb's CompressionWrapper.",
            )
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(
            texts,
            prompt=self.prompt(task_metadata, prompt_type),
            precision=precision,
            show_progress_bar=show_progress_bar,
            convert_to_numpy=True,
        )


def known_meta(name: str) -> ModelMeta | None:
    """Return mteb's own metadata for a model, or None if mteb does not know the model."""
    import mteb

    try:
        return mteb.get_model_meta(name)
    except KeyError:
        return None


def settings_meta(
    meta: ModelMeta, info: OpenedModel, fingerprint: str, run: str, **own: object
) -> ModelMeta:
    """Return metadata by which mteb keeps apart the results and vectors of different models and settings.

    mteb stores results by name, revision and experiment, and vectors by experiment alone. So the experiment includes
    the run fingerprint, which covers the weights too. The other settings in the experiment are for people to read.

    Args:
        meta: the model's metadata, perhaps with an experiment that a wrapper added.
        info: the model's files and settings.
        fingerprint: the space fingerprint, or a reranker's identity; it serves as the revision of a model that has
            none on the hub.
        run: the run fingerprint, of the model and all settings.
        own: more settings, which only this kind of model has.
    """
    settings = {
        "engine": "lastword",
        "dtype": dtype_name(info.dtype),
        "max_length": info.max_length,
        "run": run,
        **({} if info.quantize is None else {"quantize": info.quantize}),
        **own,
    }
    return meta.model_copy(
        update={
            "revision": info.files.revision or fingerprint,
            "experiment_kwargs": {**(meta.experiment_kwargs or {}), **settings},
        }
    )


def qualified_name(name: str) -> str:
    """Return a name in the form owner/name, which mteb requires; any other name or path becomes local/NAME."""
    parts = name.rstrip("/").split("/")
    return (
        name if len(parts) == 2 and all(part.strip(".") for part in parts) else f"local/{parts[-1]}"
    )
