"""Unquantised linear layers: the vendor library's matmuls.

On a CPU oneDNN packs the weight once, when the model is loaded, and fuses SwiGLU into the matmuls. For few rows, packed
weights make a matmul up to 3 times as fast. Packing is used in fp32, and in bf16 if the processor has AVX-512.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.kernels.ops import swiglu


def _packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _has_bf16()))
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _has_bf16() -> bool:
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


class Linear:
    """Linear layer: y = x · weightᵀ + bias.

    Args:
        weight: [K_out, K_in] fp32/bf16.
        bias: [K_out], dtype of weight, or None.

    Called with x [T, K_in], contiguous, dtype of weight, the layer returns y [T, K_out] in the same dtype.

    Numerics:
        Accumulates in fp32 and rounds once to the dtype of x. Exception: in bf16 on a GPU the library may split a
        matmul of few rows and add the parts in bf16 (PyTorch's `allow_bf16_reduced_precision_reduction`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.packed = _packs(weight)
        self.weight: Tensor
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        else:  # on a CPU the weight may be a view of its file, which may change
            self.weight = weight if weight.is_cuda else weight.clone()
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        return _onednn(x, self.weight, self.bias, "none")


class SwigluLinear:
    """Gate and up projections of an MLP with SwiGLU: y = silu(x · gateᵀ) · (x · upᵀ).

    Args:
        gate, up: [F, C] fp32/bf16.

    Called with x [T, C], contiguous, dtype of gate, the layer returns y [T, F] in the same dtype.

    Numerics:
        Accumulates in fp32. With a packed weight, rounds silu(gate) to the dtype of x, multiplies it by the up
        projection in fp32, and rounds the product. Otherwise rounds both projections to the dtype of x, and computes
        SwiGLU in fp32 on the rounded values.
    """

    def __init__(self, gate: Tensor, up: Tensor) -> None:
        self.packed = _packs(gate)
        weights = (gate, up) if self.packed else (torch.cat([gate, up]),)
        self.linears = tuple(Linear(weight) for weight in weights)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            return swiglu(self.linears[0](x))
        gate, up = self.linears
        return _onednn_mul(x, _onednn(x, gate.weight, None, "swish"), up.weight)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    op: Any = torch.ops.mkldnn._linear_pointwise
    result: Tensor = op(x, weight, bias, activation, [], "")
    return result


def _onednn_mul(x: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    op: Any = torch.ops.mkldnn._linear_pointwise.binary
    result: Tensor = op(x, other, weight, None, "mul")
    return result
