"""Convert a model's weights to a dtype, or merge a LoRA adapter into them, as a job for `job.py`.

Tensors that already have the dtype, and that no adapter changes, keep their bytes.
"""

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
from lastword.weights.lora.adapter import Adapter
from lastword.weights.merging.stored import StoredModel, not_finite_error


class Conversion:
    """A job that converts a model to a dtype and merges an adapter into it; with neither it only splits the files anew.

    Args:
        model: the model to convert.
        dtype: the dtype of every tensor of the result; None keeps the dtype of each tensor.
        threads: the threads for the arithmetic.
        adapter: is added to the weights; None for no adapter.

    Numerics:
        Values are rounded to nearest even, once: an adapter is multiplied and added in fp32.

    Raises:
        WeightsError: a file to be copied cannot be read, or is a link that leads out of the model's folder; the model
            lacks a weight that the adapter changes, or its shape does not fit.
    """

    specs: TensorSpecs
    identity: dict[str, object]

    def __init__(
        self,
        model: StoredModel,
        dtype: torch.dtype | None,
        threads: BlockThreads,
        adapter: Adapter | None = None,
    ) -> None:
        check_companions(model.folder)
        if adapter is not None:
            adapter.check(model.name, model.tensors)
        # A conversion copies the model card, because it still describes the model; with an adapter it is another model.
        copied = adapter is None and has_file(model.folder / CARD)
        self._card = read_companion(model.folder, Path(CARD)) if copied else None
        self._model, self._threads, self._adapter = model, threads, adapter
        self._plain = {model.keys[name]: name for name in model.tensors}
        infos = {key: model.tensors[name] for key, name in self._plain.items()}
        self.specs = {
            key: TensorSpec(dtype or torch_dtype(info.dtype), info.shape)
            for key, info in infos.items()
        }
        self.identity = {"convert": model.fingerprint, "dtype": str(dtype)}
        if adapter is not None:
            self.identity["adapter"] = adapter.hashes

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Convert one tensor and yield it in pieces."""
        dtype, plain, model = self.specs[name].dtype, self._plain[name], self._model.name
        update = None if self._adapter is None else self._adapter.update(plain)
        with open_tensor(self._model.tensors[plain], name) as tensor:

            def convert(block: slice) -> Tensor:
                if update is None:
                    return _convert_block(tensor[block], dtype, model, name)
                merged = update.add_to(tensor[block], block)
                return _convert_block(merged, dtype, f"{model} with its adapter", name)

            unit = 1 if update is None else update.width
            parts = blocks(tensor.numel(), unit)
            if update is None and dtype == tensor.dtype:
                yield from (tensor[block] for block in parts)
            else:
                yield from self._threads.map(convert, parts)

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
