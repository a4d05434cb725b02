"""`EmbedBatch` embeds a text column of a Ray Data dataset.

dataset.map_batches(EmbedBatch, fn_constructor_kwargs={"model": "Qwen/Qwen3-Embedding-0.6B"}, num_gpus=1)

Each of Ray Data's actors opens a model of its own. This module does not import Ray. For a job that survives the loss of
its driver and never loses or repeats a row, use `lastword embed -o DIRECTORY/ --ray`.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch

from lastword.embedder import Embedder
from lastword.errors import InputError, list_some
from lastword.interop import embedder_of
from lastword.weights import tensor_bytes


class EmbedBatch:
    """A callable class for `ray.data.Dataset.map_batches` that adds a column of vectors to each batch.

    A batch of NumPy columns (Ray Data's default) gets a matrix with one row per text; an Arrow table gets a column of
    lists of fixed size.

    Args:
        model: Hugging Face id, folder, or an Embedder; None is the small built-in model.
        text_field: name of the column of texts.
        vector_field: name of the new column.
        prompt_name: name of one of the model's prompts, to put before each text; by default the model's default prompt.
        prompt: text to put before each text, instead of one of the model's prompts.
        precision: as for `Embedder.encode`.
        options: keyword arguments of `Embedder`.

    Raises:
        ConfigError: options are given together with an Embedder.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Embedder | None = None,
        *,
        text_field: str = "text",
        vector_field: str = "embedding",
        prompt_name: str | None = None,
        prompt: str | None = None,
        precision: str = "float32",
        **options: Any,
    ) -> None:
        self.embedder = embedder_of(model, options)
        self._text, self._vector = text_field, vector_field
        self._how: dict[str, Any] = {
            "prompt_name": prompt_name,
            "prompt": prompt,
            "precision": precision,
        }

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the column of vectors added; `batch` itself is not changed.

        Args:
            batch: columns by name, or an Arrow table.

        Raises:
            InputError: the batch is neither of these, lacks the text column or already has the new column; or a text
                cannot be embedded.
        """
        if isinstance(batch, Mapping):
            self._check(list(batch))
            texts = batch[self._text]
            return {**batch, self._vector: self._encode(texts, convert_to_numpy=True)}
        if not hasattr(batch, "append_column"):
            got, expected = type(batch).__name__, "a dict of columns or an Arrow table"
            remedy = "Call map_batches with batch_format='numpy' or 'pyarrow'."
            raise InputError(
                "batch", "is of another kind", got=got, expected=expected, remedy=remedy
            )
        self._check(batch.column_names)
        matrix = self._encode(batch.column(self._text).to_pylist())
        return batch.append_column(self._vector, _arrow(matrix))

    def _encode(self, texts: Any, **kwargs: Any) -> Any:
        return self.embedder.encode(texts, show_progress_bar=False, **self._how, **kwargs)

    def _check(self, names: list[str]) -> None:
        """Refuse a batch without the text column or with a column of the vectors' name."""
        if self._text not in names:
            what = f"has no column {self._text!r}"
            remedy = "Name the column of texts with text_field=."
            raise InputError("batch", what, got=list_some(names), remedy=remedy)
        if self._vector in names:
            what = f"already has a column {self._vector!r}"
            raise InputError("batch", what, remedy="Choose another name with vector_field=.")


def _arrow(matrix: torch.Tensor) -> Any:
    """Return the rows of a matrix as an Arrow array of lists of fixed size."""
    import pyarrow as pa

    kinds = {
        torch.float32: pa.float32(),
        torch.float16: pa.float16(),
        torch.int8: pa.int8(),
        torch.uint8: pa.uint8(),
    }
    data = pa.py_buffer(tensor_bytes(matrix))
    values = pa.Array.from_buffers(kinds[matrix.dtype], matrix.numel(), [None, data])
    return pa.FixedSizeListArray.from_arrays(values, matrix.shape[1])
