"""The operations of the forward as functions: each checks its arguments and runs the fitting implementation.

GPU tensors go to the Triton kernel, in a file of its own that is imported at its first launch; CPU tensors to the
PyTorch twin (`reference.py`), or under TRITON_INTERPRET=1 to the kernel too, run by Triton's interpreter.

Shape letters: T packed tokens, N texts, C hidden, F MLP width, H query heads, KH key/value heads, D head_dim.
"""

import os
import shutil
from functools import cache

import torch
from torch import Tensor

from lastword.errors import ConfigError, DeviceError
from lastword.kernels import reference
from lastword.kernels.linear import Linear, SwigluLinear
from lastword.kernels.linear_int8 import (
    MAX_ROUNDING,
    Int8Linear,
    Int8SwigluLinear,
    activation_levels,
    check_int8,
)
from lastword.kernels.plan import AttentionPlan
from lastword.kernels.segments import Segments

__all__ = [
    "MAX_ROUNDING",
    "AttentionPlan",
    "Int8Linear",
    "Int8SwigluLinear",
    "Linear",
    "Segments",
    "SwigluLinear",
    "activation_levels",
    "add_rms_norm",
    "check_int8",
    "final_attention",
    "forest_attention",
    "qk_norm_rope",
    "rms_norm",
    "rope_tables",
    "swiglu",
    "swiglu_quantize",
]


def _check(where: str, name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
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


def _check_heads(where: str, **heads: Tensor) -> None:
    """Hold [rows, heads, D] to heads side by side in a row, as the kernels address them."""
    for name, x in heads.items():
        if x.stride()[1:] != (x.shape[2], 1):
            raise ConfigError(
                f"{where}: {name} has the wrong strides; got {x.stride()}, expected (any, {x.shape[2]}, 1)."
            )


def _on_triton(where: str, x: Tensor) -> bool:
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


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise each row by its root mean square: y = x / sqrt(mean(x²) + eps) · weight.

    Args:     x: [T, C] fp32/fp16/bf16. weight: [C].
    Returns:  [T, C], dtype of x.
    Numerics: everything in fp32, rounded once at the store.
    Raises:   ConfigError where shapes, dtypes or devices disagree.
    Source:   Zhang & Sennrich 2019, eq. 4; transformers `Qwen3RMSNorm` (which rounds before the weight).
    """
    _check("rms_norm", "x", x, (-1, weight.shape[0]), like=weight)
    if _on_triton("rms_norm", x):
        from lastword.kernels import rms_norm_kernel

        return rms_norm_kernel.rms_norm(x.contiguous(), weight, eps)
    return reference.rms_norm_ref(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add x to the residual in place, then normalise it: residual += x; y = rms_norm(residual).

    Args:     x, residual: [T, C], one dtype. weight: [C].
    Returns:  [T, C], dtype of x; residual holds the sum.
    Numerics: the sum is rounded to the dtype of residual; the norm is in fp32, rounded once.
    Raises:   ConfigError where shapes, dtypes or devices disagree.
    """
    _check("add_rms_norm", "x", x, (-1, weight.shape[0]), like=weight)
    _check("add_rms_norm", "residual", residual, tuple(x.shape), like=weight)
    if not residual.is_contiguous():
        raise ConfigError(
            f"add_rms_norm: residual has the wrong strides; got {residual.stride()}, expected contiguous rows."
        )
    if _on_triton("add_rms_norm", x):
        from lastword.kernels import rms_norm_kernel

        return rms_norm_kernel.add_rms_norm(x.contiguous(), residual, weight, eps)
    return reference.add_rms_norm_ref(x, residual, weight, eps)


def rope_tables(positions: Tensor, inv_freq: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Tabulate the rotation of each row once a batch: cos(position · inv_freq) · scale, and sin likewise.

    Args:     positions: [T] integers. inv_freq: [D/2] fp32. scale: yarn's attention factor.
    Returns:  two [T, D/2] fp32 tensors.
    Numerics: angles in fp32, as transformers computes them (fp64 angles differ by 1e-3 at position 32k).
    """
    return reference.rope_tables_ref(positions, inv_freq, scale)


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
) -> None:
    """Normalise every query and key head over D and rotate it by its row's position, in place.

    (a, b) = halves of rms_norm(head); head = (a·cos − b·sin, b·cos + a·sin). Values stay as they are.

    Args:     qkv: [T, (H + 2·KH)·D], contiguous; H or KH may be 0. q_weight, k_weight: [D].
              cos, sin: [T, D/2] fp32 from `rope_tables`.
    Numerics: norm and rotation in fp32, rounded once to the dtype of qkv.
    Raises:   ConfigError where shapes, dtypes or devices disagree.
    Source:   transformers `Qwen3Attention.forward` and `apply_rotary_pos_emb`.
    """
    head_dim = q_weight.shape[0]
    width = (num_heads + 2 * num_kv_heads) * head_dim
    _check("qk_norm_rope", "qkv", qkv, (-1, width), like=q_weight)
    _check("qk_norm_rope", "k_weight", k_weight, (head_dim,), like=q_weight)
    _check("qk_norm_rope", "sin", sin, (qkv.shape[0], head_dim // 2), like=cos)
    _check("qk_norm_rope", "cos", cos, tuple(sin.shape), like=sin)
    if not qkv.is_contiguous() or cos.dtype != torch.float32:
        raise ConfigError(
            f"qk_norm_rope: got qkv with strides {qkv.stride()} and {cos.dtype} tables, expected contiguous rows and "
            "float32 tables."
        )
    if _on_triton("qk_norm_rope", qkv):
        from lastword.kernels import qk_norm_rope_kernel

        qk_norm_rope_kernel.qk_norm_rope(
            qkv, q_weight, k_weight, cos.contiguous(), sin.contiguous(),
            num_heads=num_heads, num_kv_heads=num_kv_heads, eps=eps,
        )  # fmt: skip
        return
    reference.qk_norm_rope_ref(
        qkv, q_weight, k_weight, cos, sin, num_heads=num_heads, num_kv_heads=num_kv_heads, eps=eps
    )


def forest_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Attend every packed row to its ancestors' rows and to its own segment up to itself.

    out[t] = Σ softmax(scale · q[t]·k[path of t]) · v, head h reading KV head h // G.

    Args:     q: [T, H, D]; k, v: [T, KH, D], last dim contiguous. plan: of the batch's segments.
    Returns:  [T, H·D], dtype of q.
    Numerics: logits, softmax and sums in fp32; rounded once at the store.
    Raises:   ConfigError where shapes, dtypes or devices disagree.
    """
    _check("forest_attention", "k", k, (q.shape[0], -1, q.shape[2]), like=q)
    _check("forest_attention", "v", v, tuple(k.shape), like=q)
    _check_heads("forest_attention", q=q, k=k, v=v)
    if _on_triton("forest_attention", q):
        from lastword.kernels import forest_attention_kernel

        return forest_attention_kernel.forest_attention(q, k, v, plan, scale)
    return reference.forest_attention_ref(q, k, v, plan, scale)


def final_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Attend one query row a text, its final row, to its whole path.

    Args:     q: [N, H, D], a row for each of the plan's final rows; k, v: [T, KH, D].
    Returns:  [N, H·D], dtype of q.
    Numerics: logits, softmax and sums in fp32; rounded once at the store.
    Raises:   ConfigError where shapes, dtypes or devices disagree.
    """
    _check("final_attention", "q", q, (len(plan.final_rows), -1, -1), like=q)
    _check("final_attention", "k", k, (-1, -1, q.shape[2]), like=q)
    _check("final_attention", "v", v, tuple(k.shape), like=q)
    _check_heads("final_attention", q=q, k=k, v=v)
    if _on_triton("final_attention", q):
        from lastword.kernels import final_attention_kernel

        return final_attention_kernel.final_attention(q, k, v, plan, scale)
    return reference.final_attention_ref(q, k, v, plan, scale)


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate the MLP: y = silu(gate) · up.

    Args:     gate_up: [T, 2F], gate in the first F columns.
    Returns:  [T, F], dtype of gate_up.
    Numerics: in fp32, rounded once.
    Raises:   ConfigError where the width is odd.
    """
    _check_gate_up("swiglu", gate_up)
    if _on_triton("swiglu", gate_up):
        from lastword.kernels import swiglu_kernel

        return swiglu_kernel.swiglu(gate_up.contiguous())
    return reference.swiglu_ref(gate_up)


def swiglu_quantize(
    gate_up: Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Gate the MLP and quantise each row for an fp8 product: y · scale = silu(gate) · up.

    Args:     gate_up: [T, 2F], gate in the first F columns. dtype: float8_e4m3fn, or float8_e4m3fnuz on gfx942.
    Returns:  y: [T, F] fp8; scale: [T] fp32, max |row| over the format's largest number.
    Numerics: in fp32, rounded once to fp8.
    Raises:   ConfigError where the width is odd.
    """
    _check_gate_up("swiglu_quantize", gate_up)
    if _on_triton("swiglu_quantize", gate_up):
        from lastword.kernels import swiglu_kernel

        return swiglu_kernel.swiglu_quantize(gate_up.contiguous(), dtype)
    return reference.swiglu_quantize_ref(gate_up, dtype)


def _check_gate_up(where: str, gate_up: Tensor) -> None:
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ConfigError(
            f"{where}: gate_up has the wrong shape; got {list(gate_up.shape)}, expected [T, 2F]."
        )
