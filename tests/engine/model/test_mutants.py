"""Tests of the tests: a deliberately wrong version of each operation (a mutant) must exceed the tolerance."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.transformers_reference import (
    TOLERANCE,
    difference,
    load_ours,
    load_theirs,
    our_states,
    their_states,
)

from lastword.bench.checkpoint import make_checkpoint
from lastword.kernels import attention_plan, cpu
from lastword.kernels.linear import plain as linear

TOKENS = [[7, 8, 9], list(range(40)), [*range(30), 3, 4], [*range(30), 9, 9, 9], [5]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint with several KV heads and an eps large enough to change the vectors."""
    folder = make_checkpoint(
        tmp_path_factory.mktemp("wrong"), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=300,
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> torch.Tensor:
    return their_states(load_theirs(folder), TOKENS)[0]


def eps_outside(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * weight


def norm_without_weight(x, weight, eps):
    return F.rms_norm(x, (x.shape[-1],), None, eps)


def add_after_norm(x, residual, weight, eps):
    out = cpu.rms_norm(residual, weight, eps)
    residual.add_(x)
    return out


def halves_swapped(x, weights, cos, sin, eps, true=cpu._norm_rope):
    true(x, weights, cos, -sin, eps)


def rope_before_norm(x, weights, cos, sin, eps, true=cpu._norm_rope):
    true(x, [], cos, sin, eps)
    for heads, weight in weights:
        x[:, heads].mul_(weight)


def positions_off_by_one(positions, inv_freq, scale, true=cpu.rope_tables):
    # RoPE is relative: a constant shift changes nothing, but a doubled first position does.
    return true((positions - 1).clamp_min(0), inv_freq, scale)


def swapped_kv_heads(q, k, v, plan, scale, true=cpu.forest_attention):
    return true(q, k.flip(1), v.flip(1), plan, scale)


def swapped_final_heads(q, k, v, plan, scale, true=cpu.final_attention):
    return true(q, k.flip(1), v.flip(1), plan, scale)


def unscaled(q, k, v, plan, scale, true=cpu.forest_attention):
    return true(q, k, v, plan, 1.0)


def gate_and_up_swapped(x, other, weight, true=linear._onednn_mul):
    return true(x, other.sigmoid(), weight)


def mask_off_by_one(q, k, v, scale, true=cpu._attend_tile):
    # Each row reads the tile's last key instead of its own.
    return true(q, k.roll(1, 1), v.roll(1, 1), scale)


def last_row_off_by_one(paths, final_rows, device, true=attention_plan.final_groups):
    groups = true(paths, final_rows, device)
    return tuple((texts, rows[:, :-1] if rows.shape[1] > 1 else rows) for texts, rows in groups)


MUTANTS: dict[str, tuple[object, str, Callable]] = {
    "eps outside the root": (cpu, "rms_norm", eps_outside),
    "norm without weight": (cpu, "rms_norm", norm_without_weight),
    "residual added after the norm": (cpu, "add_rms_norm", add_after_norm),
    "rope halves swapped": (cpu, "_norm_rope", halves_swapped),
    "rope before the norm": (cpu, "_norm_rope", rope_before_norm),
    "positions off by one": (cpu, "rope_tables", positions_off_by_one),
    "wrong KV head": (cpu, "forest_attention", swapped_kv_heads),
    "wrong KV head at the end": (cpu, "final_attention", swapped_final_heads),
    "no scale": (cpu, "forest_attention", unscaled),
    "wrong gate": (linear, "_onednn_mul", gate_and_up_swapped),
    "mask off by one": (cpu, "_attend_tile", mask_off_by_one),
    "final path too short": (attention_plan, "final_groups", last_row_off_by_one),
}


def test_the_right_implementations_agree(folder: Path, truth: torch.Tensor) -> None:
    assert difference(our_states(load_ours(folder), TOKENS)[0], truth) <= TOLERANCE


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(
    name: str, folder: Path, truth: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*MUTANTS[name])
    assert difference(our_states(load_ours(folder), TOKENS)[0], truth) > TOLERANCE
