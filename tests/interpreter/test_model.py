"""Run a whole model with the interpreted kernels, and check which dtypes the interpreter is given."""

from pathlib import Path

import pytest
import torch
from helpers.transformers_reference import (
    TOLERANCE,
    difference,
    load_ours,
    load_theirs,
    our_states,
    their_states,
)

from lastword import ConfigError
from lastword.bench.checkpoint import make_checkpoint
from lastword.kernels import arguments
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


def test_bfloat16_is_refused() -> None:
    """Only these tests repair the interpreter (helpers/kernels/bf16_interpreter.py)."""
    with pytest.raises(ConfigError) as caught:
        arguments.on_triton("rms_norm", torch.ones(2, 80, dtype=torch.bfloat16))
    error = caught.value
    assert (error.where, error.what) == (
        "rms_norm",
        "Triton's interpreter computes bfloat16 wrongly",
    )
    assert (error.got, error.expected) == ("torch.bfloat16", "float32 or float16")
