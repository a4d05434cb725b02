"""The plain PyTorch twin of every operation: what each Triton kernel is held to, and what runs on a CPU.

Read top to bottom it is one Qwen3 layer. It knows tensors and an `AttentionPlan`, nothing of texts or checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.kernels.plan import AttentionPlan


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Twin of `rms_norm`."""
    return _normalize(x, weight, eps).to(x.dtype)


def _normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise in fp32; one pass for the statistics, where F.rms_norm writes the squares out first."""
    h = x.float()
    norm: Tensor = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
    inverse = norm.square_().div_(h.shape[-1]).add_(eps).rsqrt_()
    return (h * inverse).mul_(weight.float())


def embed_rms_norm_ref(
    ids: Tensor, table: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Twin of `embed_rms_norm`."""
    residual = table[ids].to(weight.dtype)
    return residual, rms_norm_ref(residual, weight, eps)


def add_rms_norm_ref(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Twin of `add_rms_norm`."""
    residual.add_(x)
    return rms_norm_ref(residual, weight, eps)


def add_rms_norm_quantize_ref(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Twin of `add_rms_norm_quantize`."""
    residual.add_(x)
    return quantize_rows_ref(_normalize(residual, weight, eps), dtype)


def rope_tables_ref(positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Twin of `rope_tables`."""
    angles = positions.float()[:, None] * inv_freq[None, :]  # [T, D/2]
    return angles.cos().mul_(scale), angles.sin().mul_(scale)


def _norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> None:
    """Normalise and rotate the heads of x [T, heads, D] in place: (a, b) -> (a·cos − b·sin, b·cos + a·sin)."""
    a, b = _normalize(x, weight, eps).chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    low, high = x.chunk(2, dim=-1)
    torch.addcmul(a * cos, b, sin, value=-1.0, out=low)
    torch.addcmul(b * cos, a, sin, out=high)


def qk_norm_rope_ref(
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
    """Twin of `qk_norm_rope`."""
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, -1)  # [T, H + 2·KH, D]
    if num_heads:
        _norm_rope(heads[:, :num_heads], q_weight, cos, sin, eps)
    if num_kv_heads:
        _norm_rope(heads[:, num_heads : num_heads + num_kv_heads], k_weight, cos, sin, eps)


def forest_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    """Twin of `forest_attention`: one SDPA call a block of equal segments."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)  # [T, H, D]
    for block in plan.blocks:
        if block.kv_rows is None:  # roots that lie side by side: plain views, plain causal
            rows = slice(block.start, block.start + block.count * block.own)
            q_b, k_b, v_b = (
                x[rows].view(block.count, block.own, *x.shape[1:]).transpose(1, 2)
                for x in (q, k, v)
            )
            result = F.scaled_dot_product_attention(
                q_b, k_b, v_b, is_causal=block.own > 1, scale=scale, enable_gqa=True
            )
            out[rows] = result.transpose(1, 2).flatten(0, 1)
        else:
            q_b = q[block.q_rows].transpose(1, 2)  # [B, H, rows, D]
            k_b, v_b = k[block.kv_rows].transpose(1, 2), v[block.kv_rows].transpose(1, 2)
            result = F.scaled_dot_product_attention(
                q_b, k_b, v_b, attn_mask=block.mask, scale=scale, enable_gqa=True
            )
            out[block.q_rows] = result.transpose(1, 2)
    return out.flatten(1)  # [T, H·D]


def final_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    """Twin of `final_attention`: the G heads of a KV head are the query rows of one SDPA call."""
    num_texts, num_heads, head_dim = q.shape
    out = torch.empty(num_texts, num_heads * head_dim, dtype=q.dtype, device=q.device)
    grouped = q.view(num_texts, k.shape[1], -1, head_dim)  # [N, KH, G, D]
    for texts, rows in plan.finals:
        result = F.scaled_dot_product_attention(
            grouped[texts], k[rows].transpose(1, 2), v[rows].transpose(1, 2), scale=scale
        )
        out[texts] = result.flatten(1)
    return out


def swiglu_ref(gate_up: Tensor) -> Tensor:
    """Twin of `swiglu`."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def swiglu_quantize_ref(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Twin of `swiglu_quantize`."""
    return quantize_rows_ref(swiglu_ref(gate_up.float()), dtype)


def quantize_rows_ref(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Twin of `quantize_rows`."""
    y = x.float()
    scale = y.abs().amax(-1).clamp_min(1e-12) / torch.finfo(dtype).max
    return (y / scale[:, None]).to(dtype), scale
