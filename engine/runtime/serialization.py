"""Messages between an embedder and its worker processes: pickles in which a tensor is dtype, shape and bytes.

torch's own way hands over shared memory by file descriptor, and those run out; a copy costs little beside a forward.
Knows nothing of what the messages mean.
"""

import io
import pickle
from typing import Any

import torch
from torch import Tensor

from lastword.weights import tensor_bytes


def pack(message: object) -> bytes:
    """Turn a message into bytes; tensors in it, of any device and strides, arrive on the CPU, contiguous."""
    data = io.BytesIO()
    _Pickler(data, pickle.HIGHEST_PROTOCOL).dump(message)
    return data.getvalue()


def unpack(data: bytes) -> Any:
    """Turn bytes that `pack` made, in a process of ours, into the message."""
    return pickle.loads(data)  # noqa: S301  comes over a socket that only our own process holds


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: object) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        tensor = obj.detach().cpu().contiguous()
        data = bytearray(tensor_bytes(tensor))
        return _tensor, (data, tensor.dtype, tuple(tensor.shape))


def _tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(shape)
