"""What every operation asks of its arguments before it runs, and whether they go to the Triton kernel."""

import os
import shutil
from functools import cache

import torch
from torch import Tensor

from lastword.errors import ConfigError, DeviceError


def check(where: str, name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Hold a tensor to its shape, -1 standing for any size, and to the dtype and device of `like`."""
    fits = tensor.dim() == len(shape) and all(
        want in (-1, got) for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        want = [("any" if size < 0 else size) for size in shape]
        raise ConfigError(
            f"{where}: {name} has the wrong shape; got {list(tensor.shape)}, expected {want}."
        )
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ConfigError(
            f"{where}: {name} is of another kind; got {tensor.dtype} on {tensor.device}, expected {like.dtype} on "
            f"{like.device}."
        )


def check_heads(where: str, **heads: Tensor) -> None:
    """Hold [rows, heads, D] to heads side by side in a row, as the kernels address them."""
    for name, x in heads.items():
        if x.stride()[1:] != (x.shape[2], 1):
            raise ConfigError(
                f"{where}: {name} has the wrong strides; got {x.stride()}, expected (any, {x.shape[2]}, 1)."
            )


def on_triton(where: str, x: Tensor) -> bool:
    """Whether x goes to the Triton kernel."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ConfigError(
            f"{where}: wrong dtype; got {x.dtype}, expected float32, float16 or bfloat16."
        )
    if x.is_cuda:
        _require_compiler()
        return True
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    if x.dtype == torch.bfloat16:
        raise ConfigError(
            f"{where}: Triton's interpreter is wrong in bfloat16; got {x.dtype}, expected float32 or float16."
        )
    return True


@cache
def _require_compiler() -> None:
    """Triton builds its launcher with the machine's C compiler; say so before it fails."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise DeviceError(
            "triton: no C compiler; got no gcc or clang on PATH and CC unset, expected one. Install gcc, or use "
            "device 'cpu'."
        )


def check_residual(where: str, x: Tensor, residual: Tensor, weight: Tensor) -> None:
    """Hold x and the residual to [T, C], one kind, the residual in contiguous rows."""
    check(where, "x", x, (-1, weight.shape[0]), like=weight)
    check(where, "residual", residual, tuple(x.shape), like=weight)
    if not residual.is_contiguous():
        raise ConfigError(
            f"{where}: residual has the wrong strides; got {residual.stride()}, expected contiguous rows."
        )


def check_lookup(where: str, ids: Tensor, table: Tensor, weight: Tensor) -> None:
    """Hold ids to integers [T] and the table to [V, C], side by side with the weight [C]."""
    check(where, "table", table, (-1, weight.shape[0]), like=table)
    check(where, "ids", ids, (-1,), like=ids)
    for name, tensor in (("ids", ids), ("table", table)):
        if tensor.device != weight.device or tensor.is_floating_point() != (name == "table"):
            raise ConfigError(
                f"{where}: {name} is of another kind; got {tensor.dtype} on {tensor.device}, expected "
                f"{'floating point numbers' if name == 'table' else 'integers'} on {weight.device}."
            )


def check_gate_up(where: str, gate_up: Tensor) -> None:
    """Hold gate_up to [T, 2F]."""
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ConfigError(
            f"{where}: gate_up has the wrong shape; got {list(gate_up.shape)}, expected [T, 2F]."
        )
