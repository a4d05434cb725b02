"""Messages between the caller's process and its workers: pickles that store a tensor as dtype, shape and bytes.

PyTorch's own pickling shares memory through file descriptors, and a process can run out of them; a copy costs little
compared with a forward. This module does not interpret the messages.
"""

import io
import pickle
from typing import Any

import torch
from torch import Tensor

from lastword.kernels.caller_settings import CPU
from lastword.weights import tensor_bytes


def pack(message: object) -> bytes:
    """Convert a message to bytes. Tensors in it, from any device and with any strides, arrive contiguous on the CPU."""
    data = io.BytesIO()
    _Pickler(data, pickle.HIGHEST_PROTOCOL).dump(message)
    return data.getvalue()


def unpack(data: bytes) -> Any:
    """Convert bytes from `pack` back to the message. Pass only bytes from our own processes."""
    return pickle.loads(data)  # noqa: S301  read from a socket that only our own processes hold


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: object) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        tensor = obj.detach().cpu().contiguous()
        data = bytearray(tensor_bytes(tensor))
        return _tensor, (data, tensor.dtype, tuple(tensor.shape))


def _tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype, device=CPU)
    return torch.frombuffer(data, dtype=dtype).view(shape)
