"""Fixtures of verification: one thread, and the reference of a checkpoint computed once."""

from pathlib import Path

import pytest
import torch

from lastword import model_info
from lastword.bench.checkpoint import make_checkpoint
from lastword.verify import evidence


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: for matmuls this small, waiting for threads takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


REFERENCES: dict = {}


@pytest.fixture
def known_reference(monkeypatch):
    """Compute the reference once for all tests of a checkpoint: a broken engine does not change it."""

    def cached(
        folder, ids, dtype, device, advance, quantize=None, true=evidence.compute_reference_states
    ):
        key = (folder, str(ids), dtype, quantize)
        if key not in REFERENCES:
            REFERENCES[key] = true(folder, ids, dtype, device, advance, quantize)
        return REFERENCES[key]

    monkeypatch.setattr(evidence, "compute_reference_states", cached)


@pytest.fixture
def fp8_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Options that run fp8 with its CPU implementation, which the public option refuses."""
    monkeypatch.setattr(model_info, "check_quantize", lambda quantize, *_: quantize)
    return {"device": "cpu", "dtype": "bfloat16", "quantize": "fp8"}


@pytest.fixture(scope="session")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with four layers, of which fp8 quantises the middle two."""
    return make_checkpoint(
        tmp_path_factory.mktemp("four") / "model",
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
