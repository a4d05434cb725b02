"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest

from lastword.bench.checkpoint import make_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer checkpoint with a synthetic tokenizer and the usual prompts."""
    return make_checkpoint(
        tmp_path_factory.mktemp("tiny") / "model",
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
