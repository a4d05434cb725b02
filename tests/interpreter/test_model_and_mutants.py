"""Run a whole model with the interpreted kernels, and test the tests: a mutant of a kernel must be caught."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.forest_paths import cpu_plan, one_forest, tables_of
from helpers.operations import assert_close
from helpers.transformers_reference import (
    TOLERANCE,
    difference,
    load_ours,
    load_theirs,
    our_states,
    their_states,
)

from lastword import ConfigError, kernels
from lastword.bench.checkpoint import make_checkpoint
from lastword.kernels import KernelTables, cpu, reference
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
FOREST = one_forest(TEXTS)
PLAN = cpu_plan(FOREST)
SCALE = 32**-0.5
T = FOREST.tokens_computed
X = torch.randn(3, T, 4 * 32, generator=torch.Generator().manual_seed(0))
Q, K, V = X[0].view(T, 4, 32), X[1].view(T, 4, 32)[:, :2], X[2].view(T, 4, 32)[:, :2]
WEIGHT = torch.linspace(0.5, 1.5, 128)


TABLES = tables_of(PLAN, Q, K)


def move_columns(**columns: list[int]) -> KernelTables:
    """Return the tables with one column of the segments changed."""
    return tables_of(PLAN, Q, K, replace(FOREST.segments, **columns))


def rotate(operations, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x, w = x.clone(), WEIGHT[:32].to(x.dtype)
    operations.qk_norm_rope(x, w, w, cos, sin, num_heads=4, num_kv_heads=0, eps=1e-6)
    return x


ANGLES = torch.arange(T)[:, None] * torch.linspace(0.1, 1.0, 16)
COS, SIN = ANGLES.cos(), ANGLES.sin()
FORK = [fork and fork - 1 for fork in FOREST.segments.fork]
ROOTS = [-1] * len(FORK)
FINAL_Q = Q[FOREST.final_rows].contiguous()
SHORT = replace(TABLES, final_table=TABLES.final_table - torch.tensor([0, 1], dtype=torch.int32))

# How `kernels`, `cpu` or `reference` computes each result, on inputs in one dtype, with its own form of the plan.
RIGHT: dict[str, Callable] = {
    "norm": lambda ops, wide, plan: ops.rms_norm(wide(X[0]), wide(WEIGHT), 1e-6),
    "rope": lambda ops, wide, plan: rotate(ops, wide(X[0]), wide(COS), wide(SIN)),
    "swiglu": lambda ops, wide, plan: ops.swiglu(wide(X[0])),
    "forest": lambda ops, wide, plan: ops.forest_attention(wide(Q), wide(K), wide(V), plan, SCALE),
    "final": lambda ops, wide, plan: ops.final_attention(wide(FINAL_Q), wide(K), wide(V), plan, SCALE),
}  # fmt: skip
MUTANTS: dict[str, tuple[str, Callable[[], torch.Tensor]]] = {
    "eps moved": ("norm", lambda: kernels.rms_norm(X[0], WEIGHT, 1e-3)),
    "weight forgotten": ("norm", lambda: kernels.rms_norm(X[0], torch.ones(128), 1e-6)),
    "halves swapped": ("rope", lambda: rotate(kernels, X[0], COS, -SIN)),
    "positions off by one": ("rope", lambda: rotate(kernels, X[0], COS.roll(1, 0), SIN.roll(1, 0))),
    "gate and up swapped": ("swiglu", lambda: kernels.swiglu(X[0].roll(64, 1))),
    "scale off by 1 %": ("forest", lambda: kernels.forest_attention(Q, K, V, TABLES, SCALE * 1.01)),
    "wrong KV head": (
        "forest",
        lambda: kernels.forest_attention(
            Q, K.flip(1).contiguous(), V.flip(1).contiguous(), TABLES, SCALE
        ),
    ),
    "ancestor one key short": (
        "forest",
        lambda: kernels.forest_attention(Q, K, V, move_columns(fork=FORK), SCALE),
    ),
    "ancestors forgotten": (
        "forest",
        lambda: kernels.forest_attention(Q, K, V, move_columns(parent=ROOTS), SCALE),
    ),
    "final path one key short": (
        "final",
        lambda: kernels.final_attention(FINAL_Q, K, V, SHORT, SCALE),
    ),
    "one element unwritten": (
        "forest",
        lambda: kernels.forest_attention(Q, K, V, TABLES, SCALE).index_fill_(1, torch.tensor([5]), torch.nan),
    ),
}  # fmt: skip


def assert_right(name: str, ours: torch.Tensor) -> None:
    """Compare a result with the fp64 reference; the CPU implementation's error sets the tolerance."""
    on_cpu = RIGHT[name](cpu, lambda x: x, PLAN)
    assert_close(ours, on_cpu, RIGHT[name](reference, torch.Tensor.double, PLAN))


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_kernels_pass(name: str) -> None:
    assert_right(name, RIGHT[name](kernels, lambda x: x, TABLES))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    right, mutant = MUTANTS[name]
    with pytest.raises(AssertionError):
        assert_right(right, mutant())


def test_bfloat16_is_refused() -> None:
    x = torch.ones(2, 80, dtype=torch.bfloat16)
    with pytest.raises(ConfigError) as caught:
        kernels.rms_norm(x, x[0], 1e-6)
    error = caught.value
    assert (error.where, error.what) == (
        "rms_norm",
        "Triton's interpreter computes bfloat16 wrongly",
    )
    assert (error.got, error.expected) == ("torch.bfloat16", "float32 or float16")
