"""Make Triton's interpreter right in bfloat16 and fp8, or let it refuse.

Triton's interpreter stores bfloat16 as 16-bit integers. It truncates where it should round, and its dots, sums and
other arithmetic work on these integers. Here, PyTorch converts between formats (to nearest, ties to even; to fp8 with
saturation, as GPUs do), dots multiply the decoded numbers with sums in fp32, and any other arithmetic on bfloat16
raises NotImplementedError. Our kernels convert to fp32 before they compute, so nothing is refused in them.
"""

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5": torch.float8_e5m2,
}
_INTEGERS = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


def convert(data: Any, source: Any, target: Any, rounding: Any = None) -> Any:
    """Convert the bits of an array from one floating-point format to another; return the bits as unsigned integers.

    Raises:
        NotImplementedError: the rounding is not to nearest, ties to even.
    """
    if rounding not in (None, interpreter._ir.ROUNDING_MODE.RTNE):
        raise NotImplementedError(f"rounding {rounding}")
    source, target = source.scalar, target.scalar
    width = source.primitive_bitwidth
    signed = np.ascontiguousarray(data).reshape(-1).view(f"i{width // 8}" if width > 8 else "u1")
    x = torch.from_numpy(signed.copy()).view(_DTYPES[source.name])
    wanted = _DTYPES[target.name]
    width = target.primitive_bitwidth
    if width == 8:
        largest = torch.finfo(wanted).max
        x = x.float().clamp(-largest, largest)
    bits = x.to(wanted).view(_INTEGERS[width]).numpy()
    return bits.view(f"u{width // 8}").reshape(np.shape(data))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair Triton's interpreter until the test ends."""
    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def exact_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _decoded(a), _decoded(b), *rest)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(builder, "create_dot", exact_dot)
    for name in ("binary_op", "unary_op"):
        monkeypatch.setattr(builder, name, _refuse_bfloat16(getattr(builder, name)))


def _decoded(values: Any) -> Any:
    if values.dtype.scalar != tl.bfloat16:
        return values
    numbers = convert(values.data, values.dtype, tl.float32).view(np.float32)
    return interpreter.TensorHandle(numbers, tl.float32)


def _refuse_bfloat16(compute: Any) -> Any:
    def checked(self: Any, first: Any, *rest: Any) -> Any:
        if first.dtype.scalar == tl.bfloat16:
            raise NotImplementedError(
                "Triton's interpreter would compute with the bits of bfloat16"
            )
        return compute(self, first, *rest)

    return checked
