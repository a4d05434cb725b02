"""A whole model through the interpreted kernels, and tests of the tests: a wrong kernel must be caught."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.kernel_error import assert_close
from helpers.transformers_reference import (
    TOLERANCE,
    difference,
    load_ours,
    load_theirs,
    our_states,
    their_states,
)

from lastword import ConfigError, kernels
from lastword.batching.forest import plan_forests
from lastword.bench.checkpoint import make_checkpoint
from lastword.kernels.attention_plan import AttentionPlan
from lastword.kernels.gpu import forest_attention as forest_attention_kernel
from lastword.kernels.gpu import rms_norm as rms_norm_kernel


def test_model_as_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(
        tmp_path, hidden_size=80, intermediate_size=136, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=300,
    )  # fmt: skip
    tokens = [[7] * 24 + [1, 2, 3], [7] * 24 + [4] * 9, list(range(65)), [5], [7] * 12]
    launched = []
    for module, name in (
        (forest_attention_kernel, "forest_attention"),
        (rms_norm_kernel, "add_rms_norm"),
    ):
        true = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, true=true, name=name: launched.append(name) or true(*args),
        )
    ours = our_states(load_ours(folder), tokens)[0]
    assert difference(ours, their_states(load_theirs(folder), tokens)[0]) <= TOLERANCE
    assert launched.count("forest_attention") == 2  # every layer but the last
    assert launched.count("add_rms_norm") == 6


TEXTS = [[7] * 24 + [1] * 30, [7] * 24 + [2], [3] * 5]
(FOREST,) = plan_forests(TEXTS, 10**6)
PLAN = AttentionPlan(FOREST.segments, FOREST.final_rows, torch.device("cpu"))
SCALE = 32**-0.5
T = FOREST.tokens_computed
X = torch.randn(3, T, 4 * 32, generator=torch.Generator().manual_seed(0))
Q, K, V = X[0].view(T, 4, 32), X[1].view(T, 4, 32)[:, :2], X[2].view(T, 4, 32)[:, :2]
WEIGHT = torch.linspace(0.5, 1.5, 128)


def moved(**columns: list[int]) -> AttentionPlan:
    """The plan with one column of its segments changed."""
    return AttentionPlan(replace(FOREST.segments, **columns), FOREST.final_rows, PLAN.device)


def rotated(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x = X[0].clone()
    w = WEIGHT[:32].contiguous()
    kernels.qk_norm_rope(x, w, w, cos, sin, num_heads=4, num_kv_heads=0, eps=1e-6)
    return x


ANGLES = torch.arange(T)[:, None] * torch.linspace(0.1, 1.0, 16)
COS, SIN = ANGLES.cos(), ANGLES.sin()
FORK = [fork and fork - 1 for fork in FOREST.segments.fork]
ROOTS = [-1] * len(FORK)

RIGHT: dict[str, Callable[[], torch.Tensor]] = {
    "norm": lambda: kernels.rms_norm(X[0], WEIGHT, 1e-6),
    "rope": lambda: rotated(COS, SIN),
    "swiglu": lambda: kernels.swiglu(X[0]),
    "forest": lambda: kernels.forest_attention(Q, K, V, PLAN, SCALE),
}
WRONG: dict[str, tuple[str, Callable[[], torch.Tensor]]] = {
    "eps moved": ("norm", lambda: kernels.rms_norm(X[0], WEIGHT, 1e-3)),
    "weight forgotten": ("norm", lambda: kernels.rms_norm(X[0], torch.ones(128), 1e-6)),
    "halves swapped": ("rope", lambda: rotated(COS, -SIN)),
    "positions off by one": ("rope", lambda: rotated(COS.roll(1, 0), SIN.roll(1, 0))),
    "gate and up swapped": ("swiglu", lambda: kernels.swiglu(X[0].roll(64, 1))),
    "scale off by 1 %": ("forest", lambda: kernels.forest_attention(Q, K, V, PLAN, SCALE * 1.01)),
    "wrong KV head": (
        "forest",
        lambda: kernels.forest_attention(
            Q, K.flip(1).contiguous(), V.flip(1).contiguous(), PLAN, SCALE
        ),
    ),
    "ancestor one key short": (
        "forest",
        lambda: kernels.forest_attention(Q, K, V, moved(fork=FORK), SCALE),
    ),
    "ancestors forgotten": (
        "forest",
        lambda: kernels.forest_attention(Q, K, V, moved(parent=ROOTS), SCALE),
    ),
    "one element unwritten": (
        "forest",
        lambda: kernels.forest_attention(Q, K, V, PLAN, SCALE).index_fill_(1, torch.tensor([5]), torch.nan),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_kernels_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = RIGHT[name]()
    twin = twins(monkeypatch, name)
    assert_close(ours, twin, twin.double())


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = WRONG[name]
    ours = wrong()
    twin = twins(monkeypatch, right)
    with pytest.raises(AssertionError):
        assert_close(ours, twin, twin.double())


def twins(monkeypatch: pytest.MonkeyPatch, name: str) -> torch.Tensor:
    """The right result by the PyTorch twins."""
    monkeypatch.delenv("TRITON_INTERPRET")
    return RIGHT[name]()


def test_bfloat16_is_refused() -> None:
    x = torch.ones(2, 80, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="interpreter is wrong in bfloat16"):
        kernels.rms_norm(x, x[0], 1e-6)
