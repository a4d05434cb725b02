"""One model's weights in another dtype, as a job for `job.py`; a tensor that keeps its dtype keeps its bytes."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lastword.errors import WeightsError
from lastword.weights.files.blocks import BlockThreads, blocks
from lastword.weights.files.companions import CARD, copy_companions
from lastword.weights.files.dtypes import dtype_name, torch_dtype
from lastword.weights.files.file_tensor import open_tensor
from lastword.weights.files.writer import TensorSpec, TensorSpecs
from lastword.weights.merging.stored import StoredModel, not_finite


class Conversion:
    """A model on its way to another dtype, rounded to nearest even, or only to other files.

    Args:
        model: what to convert.
        dtype: of every tensor of the result; None keeps each tensor's own.
        threads: what does the arithmetic.
    """

    specs: TensorSpecs
    identity: dict[str, object]

    def __init__(
        self, model: StoredModel, dtype: torch.dtype | None, threads: BlockThreads
    ) -> None:
        self._model, self._threads = model, threads
        self._plain = {model.keys[name]: name for name in model.tensors}
        infos = {key: model.tensors[name] for key, name in self._plain.items()}
        self.specs = {
            key: TensorSpec(dtype or torch_dtype(info.dtype), info.shape)
            for key, info in infos.items()
        }
        self.identity = {"convert": model.fingerprint, "dtype": str(dtype)}

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Convert one tensor."""
        dtype = self.specs[name].dtype
        with open_tensor(self._model.tensors[self._plain[name]], name) as tensor:

            def converted(block: slice) -> Tensor:
                return _rounded(tensor[block], dtype, self._model.name, name)

            if dtype == tensor.dtype:
                yield from (tensor[block] for block in blocks(tensor.numel()))
            else:
                yield from self._threads.map(converted, blocks(tensor.numel()))

    def facts(self, name: str) -> dict[str, Any]:
        """Say what was made of which."""
        return {"tensor": name, "dtype": dtype_name(self.specs[name].dtype)}

    def finish(self, folder: Path) -> None:
        """Copy the other files of the model, its card too."""
        card = self._model.folder / CARD
        if card.is_file():
            shutil.copyfile(card, folder / CARD)
        copy_companions(self._model.folder, folder, {spec.dtype for spec in self.specs.values()})


def _rounded(x: Tensor, dtype: torch.dtype, model: str, name: str) -> Tensor:
    """Convert elements; one that the new dtype cannot hold is an error, not an infinity."""
    made = x.to(dtype)
    # A sum in float64 is finite only where every element is.
    if not math.isfinite(float(made.sum(dtype=torch.float64))):
        if not x.isfinite().all():
            raise not_finite(model, name)
        largest = float(x.abs().max())
        raise WeightsError(
            f"{model}: tensor {name}",
            f"a value of size {largest:g} does not fit",
            got=dtype_name(dtype),
            expected=f"a dtype whose largest is above {torch.finfo(dtype).max:g}",
            remedy="Choose bf16 or f32.",
        )
    return made
