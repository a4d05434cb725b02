"""Argument checks of the operations, and the choice between PyTorch and the Triton kernels.

Each function named `check…` raises a ConfigError if its arguments do not fit.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lastword.errors import ConfigError, DeviceError


def check(where: str, name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise a ConfigError unless a tensor has this shape and the dtype and device of `like`.

    Args:
        where: the operation's name, for the error message. All checks in this module take this argument.
        name: the tensor's name, for the error message.
        tensor: the tensor to check.
        shape: the expected shape, where -1 means any size.
        like: a tensor of the expected dtype and device.
    """
    fits = tensor.dim() == len(shape) and all(
        want in (-1, got) for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        want = [("any" if size < 0 else size) for size in shape]
        raise _wrong(where, f"{name} has the wrong shape", list(tensor.shape), want)
    if tensor.dtype != like.dtype or tensor.device != like.device:
        what = f"{name} has the wrong dtype or device"
        raise _wrong(where, what, _dtype_and_device(tensor), _dtype_and_device(like))


def check_heads(where: str, scale: float, **heads: Tensor) -> None:
    """Check that in tensors [rows, heads, D] the heads of a row are contiguous, and that the softmax scale is above 0.

    There may be gaps between rows. The kernels find the largest logit before they multiply by the scale.
    """
    if not scale > 0:
        raise _wrong(where, "wrong softmax scale", scale, "a number above 0")
    for name, x in heads.items():
        if x.stride()[1:] != (x.shape[2], 1):
            expected = f"(any, {x.shape[2]}, 1)"
            raise _wrong(where, f"{name} has the wrong strides", x.stride(), expected)


def check_residual(where: str, x: Tensor, residual: Tensor, weight: Tensor) -> None:
    """Check that x and the residual are [T, C], in dtype and device like the weight, and the residual contiguous."""
    check(where, "x", x, (-1, weight.shape[0]), like=weight)
    check(where, "residual", residual, tuple(x.shape), like=weight)
    if not residual.is_contiguous():
        strides = residual.stride()
        raise _wrong(where, "residual has the wrong strides", strides, "contiguous rows")


def check_lookup(where: str, ids: Tensor, table: Tensor, weight: Tensor) -> None:
    """Check that ids are integers [T] and the table is floating-point [V, C], both on the device of the weight [C]."""
    check(where, "table", table, (-1, weight.shape[0]), like=table)
    check(where, "ids", ids, (-1,), like=ids)
    for name, tensor in (("ids", ids), ("table", table)):
        if tensor.device != weight.device or tensor.is_floating_point() != (name == "table"):
            numbers = "floating-point numbers" if name == "table" else "integers"
            expected = f"{numbers} on {weight.device}"
            what = f"{name} has the wrong dtype or device"
            raise _wrong(where, what, _dtype_and_device(tensor), expected)


def check_gate_up(where: str, gate_up: Tensor) -> None:
    """Check that gate_up is a matrix with an even number of columns, [T, 2F]."""
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise _wrong(where, "gate_up has the wrong shape", list(gate_up.shape), "[T, 2F]")


def _wrong(where: str, what: str, got: object, expected: object) -> ConfigError:
    return ConfigError(where, what, got=str(got), expected=str(expected))


def _dtype_and_device(tensor: Tensor) -> str:
    return f"{tensor.dtype} on {tensor.device}"


def launches_triton(device: torch.device) -> bool:
    """Return whether a device uses the Triton kernels: a GPU always does, a CPU only if TRITON_INTERPRET=1 is set."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def on_triton(where: str, x: Tensor) -> bool:
    """Return whether a Triton kernel processes x; if not, PyTorch does.

    Raises:
        ConfigError: the implementation for the device of x does not support the dtype of x.
        DeviceError: x is on a GPU, and Triton is not installed.
    """
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise _wrong(where, "wrong dtype", x.dtype, "float32, float16 or bfloat16")
    if not launches_triton(x.device):
        return False
    if x.is_cuda:
        _require_triton()
    elif x.dtype == torch.bfloat16:
        what = "Triton's interpreter computes bfloat16 wrongly"
        raise _wrong(where, what, x.dtype, "float32 or float16")
    return True


@cache
def _require_triton() -> None:
    """Check that Triton is installed; lastword requires it on Linux only."""
    if find_spec("triton") is None:
        raise DeviceError(
            "triton",
            "not installed",
            expected="the package triton, which compiles the GPU kernels",
            remedy="Install triton, or pass device='cpu'.",
        )
