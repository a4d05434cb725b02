"""Arguments for every operation, the same at every call, and what a call of one returns and writes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers.forest_paths import cpu_plan, one_forest
from torch import Tensor

EPS, HEADS, KV_HEADS, D = 1e-3, 4, 2, 16
FP8 = torch.float8_e4m3fn
FOREST = one_forest([[7] * 24 + [1] * 70, [7] * 24 + [2] * 5, [7] * 9 + [3] * 4, [4], [5, 6] * 4])
PLAN = cpu_plan(FOREST)
T = FOREST.tokens_computed


@dataclass(frozen=True)
class Call:
    args: tuple[Any, ...]
    options: dict[str, Any]

    def run(self, operation: Callable[..., Any]) -> list[Tensor]:
        """What it returns, then its floating arguments, some of which it may have written."""
        args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in self.args)
        result = operation(*args, **self.options)
        results = result if isinstance(result, tuple) else () if result is None else (result,)
        written = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
        return [*results, *written]

    def to(self, dtype: torch.dtype) -> "Call":
        """The floating arguments in another dtype."""
        return self.changed(lambda x: x.to(dtype))

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """The floating arguments changed."""
        return Call(
            tuple(
                change(arg) if isinstance(arg, Tensor) and arg.is_floating_point() else arg
                for arg in self.args
            ),
            self.options,
        )


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _heads(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views q, k, v of T rows of one fused projection; of q so many."""
    fused = draw(T, HEADS + 2 * KV_HEADS, D, seed=seed)
    q, k, v = fused[:, :HEADS], fused[:, HEADS:-KV_HEADS], fused[:, -KV_HEADS:]
    return q[:rows].contiguous(), k.contiguous(), v.contiguous()


WEIGHT = draw(80, seed=1) * 0.1 + 1
ANGLES = torch.arange(9)[:, None] * torch.linspace(0.1, 1.0, D // 2, dtype=torch.float64)
HEAD_WEIGHTS = (draw(D, seed=2) * 0.1 + 1, draw(D, seed=3) * 0.1 + 1)
SHAPE = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "eps": EPS}
IDS = torch.tensor([3, 0, 0, 6])

CALLS: dict[str, Call] = {
    "rms_norm": Call((draw(9, 80) * 0.1, WEIGHT, EPS), {}),
    "embed_rms_norm": Call((IDS, draw(7, 80) * 0.1, WEIGHT, EPS), {}),
    "add_rms_norm": Call((draw(9, 80) * 0.1, draw(9, 80, seed=4) * 0.1, WEIGHT, EPS), {}),
    "add_rms_norm_quantize": Call((draw(9, 80), draw(9, 80, seed=4), WEIGHT, EPS, FP8), {}),
    "quantize_rows": Call((draw(9, 80), FP8), {}),
    "rope_tables": Call((torch.arange(9), draw(D // 2).abs(), 1.1), {}),
    "qk_norm_rope": Call(
        (draw(9, (HEADS + 2 * KV_HEADS) * D) * 0.1, *HEAD_WEIGHTS, ANGLES.cos(), ANGLES.sin()), SHAPE
    ),
    "forest_attention": Call((*_heads(T, 5), PLAN, 0.3), {}),
    "final_attention": Call((*_heads(len(FOREST.final_rows), 6), PLAN, 0.3), {}),
    "swiglu": Call((draw(9, 96),), {}),
    "swiglu_quantize": Call((draw(9, 96), FP8), {}),
}  # fmt: skip
# The operations whose first result is rounded to fp8, their second the scales of its rows.
QUANTIZING = ("add_rms_norm_quantize", "quantize_rows", "swiglu_quantize")
