"""The operations of the forward pass: each checks its arguments and runs the implementation for their device.

GPU tensors go to a Triton kernel; each kernel has its own file, imported at its first launch. CPU tensors go to PyTorch
(`cpu.py`), or, if TRITON_INTERPRET=1 is set, to the kernels run by Triton's interpreter. Besides the errors that its
docstring lists, every operation except `rope_tables` raises a ConfigError for a dtype that its implementation does not
support, and on a GPU a DeviceError if Triton is not installed.

Shape letters: T packed tokens, N texts, C hidden, F MLP width, H query heads, KH key/value heads, D head_dim.
"""

import torch
from torch import Tensor

from lastword.errors import ConfigError
from lastword.kernels import cpu
from lastword.kernels.arguments import (
    check,
    check_gate_up,
    check_heads,
    check_lookup,
    check_residual,
    on_triton,
)
from lastword.kernels.attention_plan import AttentionPlan, CpuPlan, KernelTables


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise each row by its root mean square: y = x / sqrt(mean(x²) + eps) · weight.

    Args:
        x: [T, C] fp32/fp16/bf16.
        weight: [C], dtype of x.
        eps: added to the mean square.

    Returns:
        y: [T, C], dtype of x.

    Numerics:
        Computes in fp32 and rounds once, at the store.

    Raises:
        ConfigError: shapes, dtypes or devices disagree.

    Source:
        Zhang & Sennrich 2019, eq. 4; transformers `Qwen3RMSNorm` (which rounds before multiplying by the weight).
    """
    check("rms_norm", "x", x, (-1, weight.shape[0]), like=weight)
    if on_triton("rms_norm", x):
        from lastword.kernels.gpu import rms_norm as rms_norm_kernel

        return rms_norm_kernel.rms_norm(x.contiguous(), weight, eps)
    return cpu.rms_norm(x, weight, eps)


def embed_rms_norm(ids: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Look up the tokens' embeddings and normalise them: residual = table[ids]; y = rms_norm(residual).

    Args:
        ids: [T] integers from 0 to V - 1.
        table: [V, C], the token embeddings, any floating-point dtype (on a CPU the table keeps the dtype of its file).
        weight: [C].
        eps: added to the mean square.

    Returns:
        residual and y, both [T, C], dtype of weight.

    Numerics:
        Rounds the rows to the dtype of weight; computes the norm in fp32 and rounds it once.

    Raises:
        ConfigError: shapes, dtypes or devices disagree.
    """
    check_lookup("embed_rms_norm", ids, table, weight)
    if on_triton("embed_rms_norm", weight) and table.dtype == weight.dtype:
        from lastword.kernels.gpu import rms_norm as rms_norm_kernel

        return rms_norm_kernel.embed_rms_norm(ids, table.contiguous(), weight, eps)
    return cpu.embed_rms_norm(ids, table, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add x to the residual in place, then normalise the sum: residual += x; y = rms_norm(residual).

    Args:
        x: [T, C].
        residual: [T, C], dtype of x, contiguous; holds the sum afterwards.
        weight: [C], dtype of x.
        eps: added to the mean square.

    Returns:
        y: [T, C], dtype of x.

    Numerics:
        Rounds the sum to the dtype of residual; computes the norm in fp32 and rounds it once.

    Raises:
        ConfigError: shapes, dtypes or devices disagree, or residual is not contiguous.
    """
    check_residual("add_rms_norm", x, residual, weight)
    if on_triton("add_rms_norm", x):
        from lastword.kernels.gpu import rms_norm as rms_norm_kernel

        return rms_norm_kernel.add_rms_norm(x.contiguous(), residual, weight, eps)
    return cpu.add_rms_norm(x, residual, weight, eps)


def add_rms_norm_quantize(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:
    """Add x to the residual in place, normalise the sum and quantise its rows for an fp8 matmul.

    residual += x; y · scale = rms_norm(residual), up to the rounding of y to fp8.

    Args:
        x: [T, C].
        residual: [T, C], dtype of x, contiguous; holds the sum afterwards.
        weight: [C], dtype of x.
        eps: added to the mean square.
        dtype: float8_e4m3fn, or float8_e4m3fnuz on gfx942.

    Returns:
        y: [T, C] fp8, and scale: [T] fp32, each row's largest |value| divided by the format's largest number.

    Numerics:
        Rounds the sum to the dtype of residual; computes the norm in fp32 and rounds it once, to fp8.

    Raises:
        ConfigError: shapes, dtypes or devices disagree, or residual is not contiguous.
    """
    check_residual("add_rms_norm_quantize", x, residual, weight)
    if on_triton("add_rms_norm_quantize", x):
        from lastword.kernels.gpu import rms_norm as rms_norm_kernel

        return rms_norm_kernel.add_rms_norm_quantize(x.contiguous(), residual, weight, eps, dtype)
    return cpu.add_rms_norm_quantize(x, residual, weight, eps, dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """Quantise each row for an fp8 matmul: y · scale = x, up to the rounding of y to fp8.

    Args:
        x: [T, C] fp32/fp16/bf16.
        dtype: float8_e4m3fn, or float8_e4m3fnuz on gfx942.

    Returns:
        y: [T, C] fp8, and scale: [T] fp32, each row's largest |value| divided by the format's largest number.

    Numerics:
        Divides in fp32 and rounds once, to fp8. If a row of x has a NaN or an infinity, its y or scale has a NaN.

    Raises:
        ConfigError: x is not a matrix, or its dtype is not fp32, fp16 or bf16.
    """
    check("quantize_rows", "x", x, (-1, -1), like=x)
    if on_triton("quantize_rows", x):
        from lastword.kernels.gpu import quantize_rows as quantize_rows_kernel

        return quantize_rows_kernel.quantize_rows(x.contiguous(), dtype)
    return cpu.quantize_rows(x, dtype)


def rope_tables(positions: Tensor, inv_freq: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute the rotation tables of a batch: cos(position · inv_freq) · scale, and the same with sin.

    Args:
        positions: [T] integers.
        inv_freq: [D/2] fp32, the rotation in radians per position.
        scale: yarn's attention factor; 1 without yarn.

    Returns:
        cos and sin, both [T, D/2] fp32.

    Numerics:
        Computes angles in fp32, like transformers (fp64 angles differ by 1e-3 at position 32k).
    """
    return cpu.rope_tables(positions, inv_freq, scale)


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

    (a, b) = halves of rms_norm(head); head = (a·cos − b·sin, b·cos + a·sin). The value heads stay unchanged.

    Args:
        qkv: [T, (H + 2·KH)·D], contiguous; changed in place.
        q_weight: [D], dtype of qkv.
        k_weight: [D], dtype of qkv.
        cos: [T, D/2] fp32 from `rope_tables`.
        sin: [T, D/2] fp32 from `rope_tables`.
        num_heads: H, may be 0.
        num_kv_heads: KH, may be 0.
        eps: added to the mean square.

    Numerics:
        Computes norm and rotation in fp32 and rounds once, to the dtype of qkv.

    Raises:
        ConfigError: shapes, dtypes or devices disagree, qkv is not contiguous, or the tables are not fp32.

    Source:
        transformers `Qwen3Attention.forward` and `apply_rotary_pos_emb`.
    """
    head_dim = q_weight.shape[0]
    width = (num_heads + 2 * num_kv_heads) * head_dim
    check("qk_norm_rope", "qkv", qkv, (-1, width), like=q_weight)
    check("qk_norm_rope", "k_weight", k_weight, (head_dim,), like=q_weight)
    check("qk_norm_rope", "sin", sin, (qkv.shape[0], head_dim // 2), like=cos)
    check("qk_norm_rope", "cos", cos, tuple(sin.shape), like=sin)
    if not qkv.is_contiguous() or cos.dtype != torch.float32:
        raise ConfigError(
            "qk_norm_rope",
            "wrong layout of qkv or dtype of the tables",
            got=f"qkv with strides {qkv.stride()} and {cos.dtype} tables",
            expected="contiguous rows and float32 tables",
        )
    if on_triton("qk_norm_rope", qkv):
        from lastword.kernels.gpu import qk_norm_rope as qk_norm_rope_kernel

        qk_norm_rope_kernel.qk_norm_rope(
            qkv, q_weight, k_weight, cos.contiguous(), sin.contiguous(),
            num_heads=num_heads, num_kv_heads=num_kv_heads, eps=eps,
        )  # fmt: skip
        return
    cpu.qk_norm_rope(
        qkv, q_weight, k_weight, cos, sin, num_heads=num_heads, num_kv_heads=num_kv_heads, eps=eps
    )


def forest_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Compute the attention of every packed row to the rows on its path.

    The path of row t holds the rows of the ancestors of t's segment, and the rows of that segment up to t itself.
    out[t] = softmax(scale · q[t]·k[path of t]) · v[path of t]; query head h reads KV head h // G.

    Args:
        q: [T, H, D], the heads of a row contiguous.
        k: [P + T, KH, D], the heads of a row contiguous; the first P = plan.cached rows are those of cached prompts.
        v: [P + T, KH, D], the heads of a row contiguous.
        plan: the batch's attention plan: `KernelTables` for a Triton kernel, a `CpuPlan` for PyTorch.
        scale: factor of the logits q·k, above 0; 1/√D in Qwen3.

    Returns:
        [T, H·D], dtype of q.

    Numerics:
        Computes logits, softmax and sums in fp32 and rounds once, at the store; in fp16 and bf16 the softmax weights
        may be rounded to that dtype before the sum.

    Raises:
        ConfigError: shapes, dtypes or devices disagree, the heads of a row are not contiguous, the scale is not above
            0, or the plan is of the wrong kind for the implementation.
    """
    check("forest_attention", "k", k, (plan.cached + q.shape[0], -1, q.shape[2]), like=q)
    check("forest_attention", "v", v, tuple(k.shape), like=q)
    check_heads("forest_attention", scale, q=q, k=k, v=v)
    if on_triton("forest_attention", q):
        tables = _tables("forest_attention", plan)
        from lastword.kernels.gpu import forest_attention as forest_attention_kernel

        return forest_attention_kernel.forest_attention(q, k, v, tables, scale)
    return cpu.forest_attention(q, k, v, _cpu_plan("forest_attention", plan), scale)


def final_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Compute the attention of each text's last-token row to all rows of the text, shared ones included.

    Args:
        q: [N, H, D], one row for each of the plan's last-token rows, the heads of a row contiguous.
        k: [P + T, KH, D], the heads of a row contiguous; the first P = plan.cached rows are those of cached prompts.
        v: [P + T, KH, D], the heads of a row contiguous.
        plan: the batch's attention plan: `KernelTables` for a Triton kernel, a `CpuPlan` for PyTorch.
        scale: factor of the logits q·k, above 0; 1/√D in Qwen3.

    Returns:
        [N, H·D], dtype of q.

    Numerics:
        Computes logits, softmax and sums in fp32 and rounds once, at the store; in fp16 and bf16 the softmax weights
        may be rounded to that dtype before the sum.

    Raises:
        ConfigError: shapes, dtypes or devices disagree, the heads of a row are not contiguous, the scale is not above
            0, or the plan is of the wrong kind for the implementation.
    """
    check("final_attention", "q", q, (plan.num_finals, -1, -1), like=q)
    check("final_attention", "k", k, (-1, -1, q.shape[2]), like=q)
    check("final_attention", "v", v, tuple(k.shape), like=q)
    check_heads("final_attention", scale, q=q, k=k, v=v)
    if on_triton("final_attention", q):
        tables = _tables("final_attention", plan)
        from lastword.kernels.gpu import final_attention as final_attention_kernel

        return final_attention_kernel.final_attention(q, k, v, tables, scale)
    return cpu.final_attention(q, k, v, _cpu_plan("final_attention", plan), scale)


def swiglu(gate_up: Tensor) -> Tensor:
    """Apply the gate of the MLP: y = silu(gate) · up.

    Args:
        gate_up: [T, 2F], gate in the first F columns.

    Returns:
        y: [T, F], dtype of gate_up.

    Numerics:
        Computes in fp32 and rounds once.

    Raises:
        ConfigError: gate_up is not a matrix, or its width is odd.
    """
    check_gate_up("swiglu", gate_up)
    if on_triton("swiglu", gate_up):
        from lastword.kernels.gpu import swiglu as swiglu_kernel

        return swiglu_kernel.swiglu(gate_up.contiguous())
    return cpu.swiglu(gate_up)


def swiglu_quantize(
    gate_up: Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Apply the gate of the MLP and quantise each row for an fp8 matmul.

    y · scale = silu(gate) · up, up to the rounding of y to fp8.

    Args:
        gate_up: [T, 2F], gate in the first F columns.
        dtype: float8_e4m3fn, or float8_e4m3fnuz on gfx942.

    Returns:
        y: [T, F] fp8, and scale: [T] fp32, each row's largest |value| divided by the format's largest number.

    Numerics:
        Computes in fp32 and rounds once, to fp8.

    Raises:
        ConfigError: gate_up is not a matrix, or its width is odd.
    """
    check_gate_up("swiglu_quantize", gate_up)
    if on_triton("swiglu_quantize", gate_up):
        from lastword.kernels.gpu import swiglu as swiglu_kernel

        return swiglu_kernel.swiglu_quantize(gate_up.contiguous(), dtype)
    return cpu.swiglu_quantize(gate_up, dtype)


def _cpu_plan(where: str, plan: AttentionPlan) -> CpuPlan:
    if not isinstance(plan, CpuPlan):
        raise _wrong_plan(where, plan, "a CpuPlan, because PyTorch computes this")
    return plan


def _tables(where: str, plan: AttentionPlan) -> KernelTables:
    if not isinstance(plan, KernelTables):
        raise _wrong_plan(where, plan, "KernelTables, because a Triton kernel computes this")
    return plan


def _wrong_plan(where: str, plan: AttentionPlan, expected: str) -> ConfigError:
    return ConfigError(
        where, "wrong kind of attention plan", got=type(plan).__name__, expected=expected
    )
