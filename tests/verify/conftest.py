"""Fixtures of verification: one thread, and the truth of a checkpoint computed once."""

import pytest
import torch

from lastword.verify import evidence


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small lose more time in waiting for threads than they take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TRUTHS: dict = {}


@pytest.fixture
def known_truth(monkeypatch):
    """Walk transformers once for all tests of one checkpoint: no broken engine changes the truth."""

    def cached(folder, ids, dtype, device, advance, quantize=None, true=evidence.walk):
        key = (folder, str(ids), dtype, quantize)
        if key not in TRUTHS:
            TRUTHS[key] = true(folder, ids, dtype, device, advance, quantize)
        return TRUTHS[key]

    monkeypatch.setattr(evidence, "walk", cached)
