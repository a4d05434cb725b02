"""The CPU implementation of every operation, in PyTorch operations tuned for a CPU; it also runs on any other device.

The functions follow the order of one Qwen3 layer. `ops.py` documents each of them and states where it rounds; the tests
compare them with `reference.py`.
"""

from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.kernels.attention_plan import TILE_ROWS, CpuPlan, RowIndex

# Values per thread in a block: 512 KB in fp32, which stay in the cache between two passes over the block. This is two
# to three times as fast as passes over the whole batch.
_BLOCK_VALUES = 1 << 17
# A segment without ancestors goes to SDPA if it has more rows than this, and always in bf16 on a processor with AMX. In
# fp32 tiles are faster up to 1024 rows, and SDPA from 2048 rows on; in bf16 tiles are faster up to 4000 (bench/LOG.md).
_SDPA_ROWS, _SDPA_ROWS_BF16 = 1024, 4096


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `ops.rms_norm`."""
    out, weight = torch.empty_like(x, memory_format=torch.contiguous_format), weight.float()
    for x_b, out_b in _blocks(x, out):
        _normalize(x_b, weight, eps, out_b)
    return out


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors with the same number of rows into blocks of rows that stay in the cache between two passes."""
    rows, numbers = len(tensors[0]), tensors[0].numel()
    step = max(1, torch.get_num_threads() * _BLOCK_VALUES * rows // max(1, numbers))
    if step >= rows:
        return [tensors]
    return list(zip(*(torch.split(tensor, step) for tensor in tensors), strict=True))


def _normalize(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Normalise x in fp32 and store the result in `out`.

    Computing the norm takes one pass that only reads x; F.rms_norm would first write the squares to memory.
    """
    h = x.float()
    y = torch.mul(h, _inverse_rms(h, eps), out=out if out.dtype == torch.float32 else h)
    y.mul_(weight)
    if y is not out:
        out.copy_(y)


def _inverse_rms(h: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
    return torch.addcmul(_scalar(eps, h.device), norm, norm, value=1 / h.shape[-1]).rsqrt_()


@cache
def _scalar(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)


def embed_rms_norm(ids: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `ops.embed_rms_norm`."""
    residual = table.index_select(0, ids).to(weight.dtype)
    return residual, rms_norm(residual, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `ops.add_rms_norm`."""
    out, weight = torch.empty_like(residual), weight.float()
    for residual_b, x_b, out_b in _blocks(residual, x, out):
        _normalize(residual_b.add_(x_b), weight, eps, out_b)
    return out


def add_rms_norm_quantize(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `ops.add_rms_norm_quantize`."""
    y = torch.empty_like(residual, dtype=torch.float32)
    _normalize(residual.add_(x), weight.float(), eps, y)
    return quantize_rows(y, dtype)


def rope_tables(positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See `ops.rope_tables`."""
    angles = positions.float()[:, None] * inv_freq[None, :]  # [T, D/2]
    return angles.cos().mul_(scale), angles.sin().mul_(scale)


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
    """See `ops.qk_norm_rope`."""
    count = num_heads + num_kv_heads
    heads = qkv.view(qkv.shape[0], count + num_kv_heads, -1)[:, :count]  # [T, H + KH, D]
    weights = [(slice(0, num_heads), q_weight.float()), (slice(num_heads, count), k_weight.float())]
    for heads_b, cos_b, sin_b in _blocks(heads, cos[:, None, :], sin[:, None, :]):
        _norm_rope(heads_b, weights, cos_b, sin_b, eps)


def _norm_rope(
    x: Tensor, weights: list[tuple[slice, Tensor]], cos: Tensor, sin: Tensor, eps: float
) -> None:
    """Normalise and rotate the heads of x [T, heads, D] in place: (a, b) -> (a·cos − b·sin, b·cos + a·sin)."""
    h = x.float()  # x itself if x is fp32
    h.mul_(_inverse_rms(h, eps))
    for heads, weight in weights:
        if heads.start < heads.stop:
            h[:, heads].mul_(weight)
    a, b = h.chunk(2, dim=-1)
    rotated = (a * cos).addcmul_(b, sin, value=-1.0)
    b.mul_(cos).addcmul_(a, sin)
    a.copy_(rotated)
    if h is not x:
        x.copy_(h)


def forest_attention(q: Tensor, k: Tensor, v: Tensor, plan: CpuPlan, scale: float) -> Tensor:
    """See `ops.forest_attention`. Each block of the plan is computed whole or by tiles (bench/LOG.md, 2026-11-29)."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)  # [T, H, D]
    if plan.rows < len(q):
        out[plan.rows :] = 0  # padding
    # For a tile, PyTorch's fused attention is twice as fast as `_attend_tile` in bf16 with AMX, and slower elsewhere.
    fused = q.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    attend_tile = _attend_tile_fused if fused else _attend_tile
    most = _SDPA_ROWS_BF16 if q.dtype == torch.bfloat16 else _SDPA_ROWS
    for block in plan.blocks:
        if block.above == 0 and (fused or block.own > most):
            rows = (_take(q, block.rows), _take(k, block.path), _take(v, block.path))
            q_b, k_b, v_b = (_by_head(x, block.count) for x in rows)
            attended = _attend_causal(q_b, k_b, v_b, scale)
            out[block.rows] = attended.transpose(1, 2).flatten(0, 1)
            continue
        k_t, v_t = (_by_head(_take(x, block.path), block.count).flatten(0, 1) for x in (k, v))
        k_t = k_t if fused else k_t.to(_wide(k))  # once for all tiles
        for low in range(0, block.own, TILE_ROWS):
            high = min(low + TILE_ROWS, block.own)
            tile, keys = block.rows_between(low, high), block.above + high
            q_t = _by_head(_take(q, tile), block.count)  # [B, H, rows, D]
            k_own, v_own = (x if keys == x.shape[1] else x[:, :keys] for x in (k_t, v_t))
            attended = attend_tile(q_t, k_own, v_own, scale)
            out[tile] = attended.transpose(1, 2).reshape(-1, *q.shape[1:])
    return out.flatten(1)  # [T, H·D]


def _take(x: Tensor, rows: RowIndex) -> Tensor:
    """Return these rows of x; on a CPU `index_select` is much faster than `x[rows]` (bench/LOG.md, 2026-11-24)."""
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def _by_head(x: Tensor, count: int) -> Tensor:
    """View [B·rows, heads, D] as [B, heads, rows, D]."""
    return x.view(count, -1, *x.shape[1:]).transpose(1, 2)


def _attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Compute attention within segments without ancestors: q [B, H, own, D], k and v [B, KH, own, D]."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


def _attend_tile(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Compute the attention of a tile of query rows in each of B segments, in fp32 (in fp64 if q is fp64).

    In bf16, the softmax weights are rounded to bf16 if the processor multiplies bf16 numbers.

    Args:
        q: [B, H, rows, D], the queries of the last `rows` rows of each path.
        k: [B·KH, keys, D], the keys of each whole path, in fp32 (in fp64 if q is fp64).
        v: [B·KH, keys, D], the values of each whole path.
        scale: factor of the logits.

    Returns:
        [B, H, rows, D], dtype of q.
    """
    _, _, rows, head_dim = q.shape
    wide = k.dtype
    grouped = q.reshape(len(k), -1, head_dim).to(wide)  # [B·KH, G·rows, D]
    logits = grouped.new_empty(len(k), grouped.shape[1], k.shape[1])
    logits.baddbmm_(grouped, k.transpose(1, 2), beta=0, alpha=scale)
    own = logits.view(len(k), -1, rows, k.shape[1])[..., -rows:]
    own.add_(_causal_mask(wide, q.device)[:rows, :rows])
    torch.softmax(logits, -1, out=logits)
    in_bf16 = v.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    narrow = v.dtype if in_bf16 else wide
    return torch.bmm(logits.to(narrow), v.to(narrow)).view(q.shape).to(q.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype to compute logits of x in: fp32, or fp64 if x is fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def _attend_tile_fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Do the same as `_attend_tile`, but take k in the dtype of q, and round the softmax weights to the dtype of v."""
    batch, heads, rows, _ = q.shape
    k, v = (x.view(batch, -1, *x.shape[1:]) for x in (k, v))  # [B, KH, keys, D]
    grouped = q.reshape(*k.shape[:2], -1, q.shape[3])  # [B, KH, G·rows, D]
    mask = _tile_mask(rows, k.shape[2], heads // k.shape[1], q.dtype, q.device)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale).view(q.shape)


@lru_cache(maxsize=64)
def _tile_mask(
    rows: int, keys: int, group: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the mask to add to the logits of a tile, [G·rows, keys]."""
    return F.pad(_causal_mask(dtype, device)[:rows, :rows], (keys - rows, 0)).repeat(group, 1)


@cache
def _causal_mask(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask to add to the logits between a tile's own rows: minus infinity above the diagonal."""
    return torch.full((TILE_ROWS, TILE_ROWS), -torch.inf, dtype=dtype, device=device).triu_(1)


def final_attention(q: Tensor, k: Tensor, v: Tensor, plan: CpuPlan, scale: float) -> Tensor:
    """See `ops.final_attention`. The G query heads of a KV head become the query rows of an SDPA call."""
    num_texts, num_heads, head_dim = q.shape
    out = torch.empty(num_texts, num_heads * head_dim, dtype=q.dtype, device=q.device)
    if len(plan.final_rows) < num_texts:
        out[len(plan.final_rows) :] = 0  # padding
    grouped = q.view(num_texts, k.shape[1], -1, head_dim)  # [N, KH, G, D]
    for texts, rows in plan.finals:
        k_b, v_b = (_by_head(_take(x, rows.flatten()), len(rows)) for x in (k, v))
        result = F.scaled_dot_product_attention(grouped[texts], k_b, v_b, scale=scale)
        out[texts] = result.flatten(1)
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    """See `ops.swiglu`."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def swiglu_quantize(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `ops.swiglu_quantize`."""
    return quantize_rows(swiglu(gate_up.float()), dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `ops.quantize_rows`."""
    y = x.float()
    scale = y.abs().amax(-1).clamp_min(1e-12) / torch.finfo(dtype).max
    return (y / scale[:, None]).to(dtype), scale
