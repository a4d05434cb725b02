"""Convert a model's weights to a dtype, as a job for `job.py`; tensors that already have the dtype keep their bytes."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lastword.errors import WeightsError
from lastword.weights.files.blocks import BlockThreads, blocks
from lastword.weights.files.companions import (
    CARD,
    check_companions,
    copy_companions,
    read_companion,
)
from lastword.weights.files.dtypes import dtype_name, torch_dtype
from lastword.weights.files.file_tensor import open_tensor
from lastword.weights.files.reading import has_file
from lastword.weights.files.writer import TensorSpec, TensorSpecs
from lastword.weights.merging.stored import StoredModel, not_finite_error


class Conversion:
    """A job that converts a model to a dtype, rounding to nearest even; with dtype None it only splits the files anew.

    Args:
        model: the model to convert.
        dtype: the dtype of every tensor of the result; None keeps the dtype of each tensor.
        threads: the threads for the arithmetic.

    Raises:
        WeightsError: a file to be copied cannot be read, or is a link that leads out of the model's folder.
    """

    specs: TensorSpecs
    identity: dict[str, object]

    def __init__(
        self, model: StoredModel, dtype: torch.dtype | None, threads: BlockThreads
    ) -> None:
        check_companions(model.folder)
        # A conversion copies the model card, because it still describes the model; a merge writes a new one.
        card = model.folder / CARD
        self._card = read_companion(model.folder, Path(CARD)) if has_file(card) else None
        self._model, self._threads = model, threads
        self._plain = {model.keys[name]: name for name in model.tensors}
        infos = {key: model.tensors[name] for key, name in self._plain.items()}
        self.specs = {
            key: TensorSpec(dtype or torch_dtype(info.dtype), info.shape)
            for key, info in infos.items()
        }
        self.identity = {"convert": model.fingerprint, "dtype": str(dtype)}

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Convert one tensor and yield it in pieces."""
        dtype = self.specs[name].dtype
        with open_tensor(self._model.tensors[self._plain[name]], name) as tensor:

            def convert(block: slice) -> Tensor:
                return _convert_block(tensor[block], dtype, self._model.name, name)

            if dtype == tensor.dtype:
                yield from (tensor[block] for block in blocks(tensor.numel()))
            else:
                yield from self._threads.map(convert, blocks(tensor.numel()))

    def facts(self, name: str) -> dict[str, Any]:
        """Return the name and dtype of a converted tensor."""
        return {"tensor": name, "dtype": dtype_name(self.specs[name].dtype)}

    def finish(self, folder: Path) -> None:
        """Copy the model's companion files and its model card."""
        if self._card is not None:
            (folder / CARD).write_bytes(self._card)
        dtypes = {spec.dtype for spec in self.specs.values()}
        copy_companions(self._model.folder, folder, dtypes)


def _convert_block(x: Tensor, dtype: torch.dtype, model: str, name: str) -> Tensor:
    """Convert a block of elements; a value that is too large for the dtype is an error and does not become infinity."""
    made = x.to(dtype)
    # A sum in float64 is finite only if every element is.
    if not math.isfinite(float(made.sum(dtype=torch.float64))):
        if not x.isfinite().all():
            raise not_finite_error(model, name)
        largest = float(x.abs().max())
        raise WeightsError(
            f"{model}: tensor {name}",
            f"a value of size {largest:g} is too large for the dtype",
            got=dtype_name(dtype),
            expected=f"a dtype with values above {torch.finfo(dtype).max:g}",
            remedy="Choose bf16 or f32.",
        )
    return made
