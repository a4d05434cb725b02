"""The reference implementation, for tests: each operation of `ops.py` as a formula, in the dtype of its inputs."""
# ruff: noqa: D103

import torch
from torch import Tensor

from lastword.kernels.attention_plan import CpuPlan


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def embed_rms_norm(ids: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    residual = table[ids].to(weight.dtype)
    return residual, rms_norm(residual, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(residual.add_(x), weight, eps)


def add_rms_norm_quantize(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return quantize_rows(add_rms_norm(x, residual, weight, eps), dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1).clamp_min(1e-12) / torch.finfo(dtype).max
    return (x / scale[:, None]).to(dtype), scale


def rope_tables(positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    angles = positions[:, None] * inv_freq
    return angles.cos() * scale, angles.sin() * scale


def qk_norm_rope(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    *, num_heads: int, num_kv_heads: int, eps: float,
) -> None:  # fmt: skip
    for head in range(num_heads + num_kv_heads):
        x = qkv.view(len(qkv), -1, len(q_weight))[:, head]
        a, b = rms_norm(x, q_weight if head < num_heads else k_weight, eps).chunk(2, dim=1)
        x.copy_(torch.cat([a * cos - b * sin, b * cos + a * sin], dim=1))


def forest_attention(q: Tensor, k: Tensor, v: Tensor, plan: CpuPlan, scale: float) -> Tensor:
    return _attend(list(range(len(q))), q, k, v, plan, scale)


def final_attention(q: Tensor, k: Tensor, v: Tensor, plan: CpuPlan, scale: float) -> Tensor:
    return _attend(plan.final_rows, q, k, v, plan, scale)


def _attend(
    rows: list[int], q: Tensor, k: Tensor, v: Tensor, plan: CpuPlan, scale: float
) -> Tensor:
    """Compute the attention of each query q[i] to the path of row rows[i], from the row's segment up to the root."""
    segments, out = plan.segments, q.new_empty(q.shape)  # [rows, H, D]
    for i, (row, segment) in enumerate(zip(rows, segments.owners(rows), strict=True)):
        path = [slice(segments.start[segment], row + 1)]
        while (parent := segments.parent[segment]) >= 0:
            start = segments.start[parent]
            path.append(slice(start, start + segments.fork[segment]))
            segment = parent
        keys, values = (torch.cat([x[part] for part in path]).transpose(0, 1) for x in (k, v))
        logits = q[i].reshape(k.shape[1], -1, q.shape[2]) @ keys.mT * scale  # [KH, G, keys]
        out[i] = (logits.softmax(-1) @ values).view(q.shape[1:])
    return out.flatten(1)


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * gate.sigmoid() * up


def swiglu_quantize(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return quantize_rows(swiglu(gate_up), dtype)
