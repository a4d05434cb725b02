"""Linear layers in fp8 on a GPU, by the vendor library's matmuls.

The weight has one scale per output channel, the input one scale per row. The kernel before a layer (RMSNorm, SwiGLU)
may already have quantised the layer's input; otherwise the layer quantises its input itself. On CPU tensors the same
quantised numbers are multiplied in fp32, to test the scales and the quantisation error.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import ConfigError, DeviceError
from lastword.kernels import cpu
from lastword.kernels.ops import quantize_rows, swiglu_quantize

# Activations [T, K]; or, if quantised, fp8 codes [T, K] and fp32 scales [T], where row t is codes[t] · scales[t].
MatmulInput = Tensor | tuple[Tensor, Tensor]

# Hopper's tensor cores add fp8 products in fewer bits than fp32 has, unless the sums move to fp32 every 128 elements,
# which is much slower in PyTorch's row-wise matmuls. The error of the sums is far smaller than the error of rounding
# to fp8.
_FAST_ACCUM = True
# Widths must be multiples of this in the vendor libraries' fp8 matmuls.
_MULTIPLE = 16
# cuBLASLt on Hopper is reported to refuse 256 rows or fewer if K_in is large (pytorch/ao #4582). Each layer tries
# _FEW_ROWS rows when it is created. If the library refuses any of these, inputs with fewer than _ENOUGH_ROWS rows are
# padded with rows of zeros.
_FEW_ROWS, _ENOUGH_ROWS = (1, 16, 64, 256), 272


def check_fp8(device: torch.device) -> None:
    """Check that a device can run fp8 matmuls.

    Raises:
        ConfigError: the device is a CPU.
        DeviceError: the GPU cannot multiply fp8 numbers.
    """
    if device.type != "cuda":
        raise ConfigError(
            "quantize",
            "fp8 is for GPUs",
            got=f"device {str(device)!r}",
            expected="'cuda'",
            remedy="Pass quantize='int8' on a CPU, or leave it out.",
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
            f"fp8 is not supported on {str(device)!r}",
            got=found,
            expected="compute capability 8.9 or later, gfx942 or gfx950",
            remedy="Leave quantize out to compute without quantisation.",
        )


@cache
def fp8_format(device: torch.device) -> torch.dtype:
    """Return the device's fp8 format with 3 mantissa bits: e4m3fnuz on gfx942, e4m3fn elsewhere."""
    old = device.type == "cuda" and bool(torch.version.hip) and _gfx(device) == "gfx942"
    return torch.float8_e4m3fnuz if old else torch.float8_e4m3fn


def _gfx(device: torch.device) -> str:
    name: str = torch.cuda.get_device_properties(device).gcnArchName
    return name.partition(":")[0]


class Fp8Linear:
    """Linear layer y = x · weightᵀ + bias, computed as s · (q(x / s) · q(weight / w)ᵀ) · w + bias.

    There is one scale s per row of x and one scale w per output channel; q rounds to fp8.

    Args:
        weight: [K_out, K_in], both sizes multiples of 16; bf16 or, on a CPU only, fp32.
        bias: [K_out] or None.

    Called with x [T, K_in], in the dtype of weight or already quantised, the layer returns y [T, K_out], dtype of
    weight. Row t of y depends only on row t of x.

    Numerics:
        Rounds weight and x to `fp8_format`, with the scale of a row equal to max |row| / the format's largest number.
        Rescales the sums in fp32, rounds them once to the dtype of weight, and again after adding the bias. If an input
        row has a NaN or an infinity, its output row is not finite. Some GPUs accumulate in fewer bits than fp32 has
        (`_FAST_ACCUM`): the sums of an emulated H100, which keeps 13 bits below the largest of 32 products, err by
        2.6e-3 of their RMS at K_in = 12,288 and 4.4e-4 at 768. Rounding to fp8 errs by 3.7e-2 at any width.

    Raises:
        ConfigError: a size is not a multiple of 16.
        DeviceError: the vendor library refuses such matmuls on this GPU.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
            raise ConfigError(
                "quantize",
                f"fp8 needs widths in multiples of {_MULTIPLE}",
                got=f"a weight of shape {list(weight.shape)}",
                remedy="Leave quantize out to compute without quantisation.",
            )
        self.format, self.dtype, self.bias = fp8_format(weight.device), weight.dtype, bias
        self.weight, scale = cpu.quantize_rows(weight, self.format)
        self.scale = scale[None]  # [1, K_out]
        self.least_rows = _least_rows(self.weight, self.scale, self.dtype) if weight.is_cuda else 1

    def __call__(self, x: MatmulInput) -> Tensor:
        codes, scale = x if isinstance(x, tuple) else quantize_rows(x, self.format)
        T = len(codes)
        if self.least_rows > T:
            codes, scale = (_pad_rows(each, self.least_rows) for each in (codes, scale))
        # The libraries need a column-major right operand: the transpose of the row-major weight.
        y = _product(codes, self.weight.t(), scale[:, None], self.scale, self.dtype)[:T]
        return y if self.bias is None else y.add_(self.bias)


class Fp8SwigluLinear:
    """Gate and up projections of an MLP with SwiGLU: y = silu(x · gateᵀ) · (x · upᵀ), quantised to fp8.

    The matmuls are those of `Fp8Linear`; y is the input of the down projection.

    Args:
        gate, up: [F, C].

    Called with x [T, C], in the dtype of gate or already quantised, the layer returns y as fp8 [T, F] and the scales
    of y as fp32 [T], like `swiglu_quantize`.

    Numerics:
        Rounds the projections to the dtype of gate, computes SwiGLU on them in fp32, and rounds once to fp8.
    """

    def __init__(self, gate: Tensor, up: Tensor) -> None:
        self.linear = Fp8Linear(torch.cat([gate, up]))

    def __call__(self, x: MatmulInput) -> tuple[Tensor, Tensor]:
        return swiglu_quantize(self.linear(x), self.linear.format)


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute (a_scale · a) · (b · b_scale) for fp8 a [T, K], b [K, K_out] and fp32 scales [T, 1], [1, K_out]."""
    if a.is_cuda:
        return _row_wise_product(a, b, a_scale, b_scale, dtype)
    return (a.float() @ b.float()).mul_(a_scale).mul_(b_scale).to(dtype)


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    """Pad x [T, …] with zeros to `rows` rows."""
    padded = x.new_zeros(rows, *x.shape[1:])
    padded[: len(x)] = x
    return padded


def _least_rows(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> int:
    """Find by trial how many rows an input needs with this weight: 1, or `_ENOUGH_ROWS` if the library refuses fewer.

    Raises:
        DeviceError: the library refuses `_ENOUGH_ROWS` rows too.
    """
    if not any(_refusal(weight, scale, dtype, rows) for rows in _FEW_ROWS):
        return 1
    if refusal := _refusal(weight, scale, dtype, _ENOUGH_ROWS):
        raise DeviceError(
            "quantize",
            f"fp8 matmuls with row scales are not supported on {str(weight.device)!r}",
            got=f"{refusal!r} from PyTorch",
            expected="a result",
            remedy="Leave quantize out to compute without quantisation.",
        )
    return _ENOUGH_ROWS


def _refusal(weight: Tensor, scale: Tensor, dtype: torch.dtype, rows: int) -> str:
    """Return the library's error for a matmul of `rows` rows, or "" if the matmul succeeds."""
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
