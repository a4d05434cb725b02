"""Matmuls in fp8 on a GPU: the vendor library's, with one scale per output channel and one per row.

Activations arrive quantised from the kernel before (norm, SwiGLU), or are quantised here. On CPU tensors the same
quantised numbers are multiplied in fp32, for tests of scales and drift.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import ConfigError, DeviceError
from lastword.kernels import cpu
from lastword.kernels.ops import quantize_rows, swiglu_quantize

# [T, K]; or quantised, fp8 [T, K] and fp32 [T], of which the product by rows is what they stand for.
Rows = Tensor | tuple[Tensor, Tensor]

# Hopper's tensor cores add fp8 products in fewer bits than fp32 has unless sums are moved to fp32 every 128 elements,
# which the row-wise products of PyTorch do much slower; sums of fewer bits err far less than the rounding to fp8.
_FAST_ACCUM = True
# Widths that the vendor libraries' fp8 products take.
_MULTIPLE = 16
# cuBLASLt on Hopper is reported to refuse 256 rows or fewer where K_in is long (pytorch/ao #4582); they then get rows
# of zeros beside them.
_FEW_ROWS, _ENOUGH_ROWS = (1, 16, 64, 256), 272


def check_fp8(device: torch.device) -> None:
    """Hold the device to what fp8 products need.

    Raises:   ConfigError on a CPU, DeviceError for a GPU without fp8.
    """
    if device.type != "cuda":
        raise ConfigError(
            "quantize",
            "fp8 is for GPUs",
            got=f"device {str(device)!r}",
            expected="'cuda'",
            remedy="Use quantize 'int8' on a CPU, or leave quantize out.",
        )
    if torch.version.hip:
        found = _gfx(device)
        able = found in ("gfx942", "gfx950")
    else:
        major, minor = torch.cuda.get_device_capability(device)
        found, able = f"compute capability {major}.{minor}", (major, minor) >= (8, 9)
    if not able:
        raise DeviceError(
            "quantize",
            f"fp8 has no matmuls on {str(device)!r}",
            got=found,
            expected="compute capability 8.9 or later, gfx942 or gfx950",
            remedy="Leave quantize out.",
        )


@cache
def fp8_format(device: torch.device) -> torch.dtype:
    """The fp8 with 3 bits of mantissa that the device multiplies: e4m3fnuz on gfx942, else e4m3fn."""
    old = device.type == "cuda" and bool(torch.version.hip) and _gfx(device) == "gfx942"
    return torch.float8_e4m3fnuz if old else torch.float8_e4m3fn


def _gfx(device: torch.device) -> str:
    name: str = torch.cuda.get_device_properties(device).gcnArchName
    return name.partition(":")[0]


class Fp8Linear:
    """y = x · weightᵀ + bias, computed as s · (q(x / s) · q(weight / w)ᵀ) · w + bias, with s per row and w per channel.

    Args:     weight: [K_out, K_in] bf16 on a GPU (fp32 too on a CPU), both sizes multiples of 16; bias: [K_out] or
              None. x: [T, K_in], dtype of weight, or already quantised.
    Returns:  [T, K_out], dtype of weight; a row depends on no other row.
    Numerics: weight and x rounded to `fp8_format` under scales max |row| / its largest number; accumulated by the
              tensor cores (`_FAST_ACCUM`), rescaled in fp32, rounded once to the dtype of weight, again by the bias.
              A row with a NaN or an infinity gives no finite row.
    Raises:   ConfigError where a size is no multiple of 16; DeviceError where the library refuses such products.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
            raise ConfigError(
                "quantize",
                f"fp8 needs widths in multiples of {_MULTIPLE}",
                got=f"a weight of {list(weight.shape)}",
                remedy="Leave quantize out.",
            )
        self.format, self.dtype, self.bias = fp8_format(weight.device), weight.dtype, bias
        self.weight, scale = cpu.quantize_rows(weight, self.format)
        self.scale = scale[None]  # [1, K_out]
        self.least_rows = _least_rows(self.weight, self.scale, self.dtype) if weight.is_cuda else 1

    def __call__(self, x: Rows) -> Tensor:
        codes, scale = x if isinstance(x, tuple) else quantize_rows(x, self.format)
        T = len(codes)
        if self.least_rows > T:
            codes, scale = (_with_zeros(each, self.least_rows) for each in (codes, scale))
        # Column-major on the right, as the libraries want it: the transpose of a row-major weight.
        y = _product(codes, self.weight.t(), scale[:, None], self.scale, self.dtype)[:T]
        return y if self.bias is None else y.add_(self.bias)


class Fp8SwigluLinear:
    """y = silu(x · gateᵀ) · (x · upᵀ), the products as in `Fp8Linear`, y quantised for the next.

    Args:     gate_up: [2F, C], gate rows first. x: [T, C], or already quantised.
    Returns:  fp8 [T, F] and fp32 [T], as `swiglu_quantize` gives them.
    Numerics: the products rounded to the dtype of gate_up, SwiGLU in fp32 on them, rounded once to fp8.
    """

    def __init__(self, gate_up: Tensor) -> None:
        self.linear = Fp8Linear(gate_up)

    def __call__(self, x: Rows) -> tuple[Tensor, Tensor]:
        return swiglu_quantize(self.linear(x), self.linear.format)


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(a_scale · a) · (b · b_scale): fp8 [T, K] and [K, K_out], fp32 [T, 1] and [1, K_out]."""
    if a.is_cuda:
        return _row_wise_product(a, b, a_scale, b_scale, dtype)
    return (a.float() @ b.float()).mul_(a_scale).mul_(b_scale).to(dtype)


def _with_zeros(x: Tensor, rows: int) -> Tensor:
    """Put zeros behind x [T, …] up to so many rows."""
    padded = x.new_zeros(rows, *x.shape[1:])
    padded[: len(x)] = x
    return padded


def _least_rows(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> int:
    """Rows that the library multiplies with this weight at least, found by trying: not all products are there.

    Raises:   DeviceError where it refuses many rows too.
    """
    if not any(_refusal(weight, scale, dtype, rows) for rows in _FEW_ROWS):
        return 1
    if refusal := _refusal(weight, scale, dtype, _ENOUGH_ROWS):
        raise DeviceError(
            "quantize",
            f"fp8 has no matmuls by rows on {str(weight.device)!r}",
            got=f"{refusal!r} from PyTorch",
            expected="a result",
            remedy="Leave quantize out.",
        )
    return _ENOUGH_ROWS


def _refusal(weight: Tensor, scale: Tensor, dtype: torch.dtype, rows: int) -> str:
    """What the library says to a product of so many rows; "" where it computes it."""
    codes = weight.new_zeros(rows, weight.shape[1])
    ones = scale.new_ones(rows)
    try:
        _row_wise_product(codes, weight.t(), ones[:, None], scale, dtype)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _row_wise_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    row_wise = F.ScalingType.RowWise
    return F.scaled_mm(
        a, b, a_scale, row_wise, b_scale, row_wise, output_dtype=dtype, use_fast_accum=_FAST_ACCUM
    )
