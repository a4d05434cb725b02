"""Dtypes by their names in safetensors and in torch, and a tensor's bytes: without NumPy, and no import of torch.

The one table of what the format can hold. Of it a checkpoint's weights may have only `WEIGHT_DTYPES`.
"""

import ctypes
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

# The format's name → torch's name and the bytes of an element.
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
    """Give torch's name without its prefix, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def safetensors_name(dtype: "torch.dtype") -> str | None:
    """Give the format's name, such as `BF16`; None where the format has none."""
    return _STORED_AS.get(dtype_name(dtype))


def torch_dtype(stored: str) -> "torch.dtype":
    """Give torch's dtype of a name of the format."""
    import torch

    found: torch.dtype = getattr(torch, _DTYPES[stored][0])
    return found


def tensor_bytes(tensor: "torch.Tensor") -> memoryview:
    """Give a tensor's bytes in row order, of any device and strides, to be written or copied.

    They are the tensor's own memory where it is contiguous and on the CPU, and keep it alive.
    """
    whole = tensor.detach().cpu().contiguous()
    if not whole.numel():
        return memoryview(b"")
    data = (ctypes.c_ubyte * whole.nbytes).from_address(whole.data_ptr())
    # The view holds `data`, and with it the memory.
    data.tensor = whole  # type: ignore[attr-defined]
    return memoryview(data).toreadonly()
