"""Names and sizes of dtypes in safetensors and in torch, and access to a tensor's bytes without NumPy.

The table lists the dtypes of the safetensors format that lastword knows; a checkpoint's weights may have only
`WEIGHT_DTYPES`. Importing this module does not import torch.
"""

import ctypes
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

# Name in safetensors → (name in torch, bytes per element).
_DTYPES: Final = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E8M0": ("float8_e8m0fnu", 1), "I16": ("int16", 2), "U16": ("uint16", 2),
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I32": ("int32", 4), "U32": ("uint32", 4),
    "F32": ("float32", 4), "F64": ("float64", 8), "I64": ("int64", 8), "U64": ("uint64", 8), "C64": ("complex64", 8),
}  # fmt: skip
_STORED_AS: Final = {name: stored for stored, (name, _) in _DTYPES.items()}
ELEMENT_SIZES: Final = {stored: size for stored, (_, size) in _DTYPES.items()}
WEIGHT_DTYPES: Final = ("F32", "BF16", "F16")


def dtype_name(dtype: "torch.dtype") -> str:
    """Return torch's name of a dtype without its prefix, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def safetensors_name(dtype: "torch.dtype") -> str | None:
    """Return the name of a dtype in safetensors, such as `BF16`; None if the table has no such dtype."""
    return _STORED_AS.get(dtype_name(dtype))


def torch_dtype(stored: str) -> "torch.dtype":
    """Return torch's dtype for a safetensors name."""
    import torch

    found: torch.dtype = getattr(torch, _DTYPES[stored][0])
    return found


def tensor_bytes(tensor: "torch.Tensor") -> memoryview:
    """Return a tensor's bytes in row-major order, for any device and strides.

    For a contiguous CPU tensor the result is a read-only view of the tensor's memory, and keeps that memory alive.
    """
    whole = tensor.detach().cpu().contiguous()
    if not whole.numel():
        return memoryview(b"")
    data = (ctypes.c_ubyte * whole.nbytes).from_address(whole.data_ptr())
    # The view keeps `data` alive, and `data` keeps the memory alive.
    data.tensor = whole  # type: ignore[attr-defined]
    return memoryview(data).toreadonly()
