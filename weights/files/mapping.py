"""A tensor of a safetensors file as a view of the mapped file: nothing is read before it is used."""

import mmap

import torch
from torch import Tensor

from lastword.errors import WeightsError
from lastword.weights.files.dtypes import torch_dtype
from lastword.weights.files.header import TensorInfo


def mapped(info: TensorInfo, name: str) -> Tensor:
    """Map one tensor; the mapping lives exactly as long as the tensor does.

    Raises:
        WeightsError: the file cannot be mapped.
    """
    # Only this tensor's pages: a mapping of a whole file can exceed what the system grants.
    lead = info.start % mmap.ALLOCATIONGRANULARITY
    try:
        with info.file.open("rb") as file:
            pages = mmap.mmap(
                file.fileno(),
                info.num_bytes + lead,
                access=mmap.ACCESS_COPY,
                offset=info.start - lead,
            )
    except (OSError, ValueError) as problem:
        raise WeightsError(f"{info.file}: tensor {name}", f"cannot be mapped ({problem})") from None
    flat = torch.frombuffer(pages, dtype=torch_dtype(info.dtype), offset=lead)
    return flat.view(info.shape)
