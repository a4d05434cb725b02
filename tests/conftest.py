"""Fixtures that several folders of tests use."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lastword.bench.checkpoint import make_checkpoint

# A shell starts background jobs with Ctrl-C switched off, and nohup switches hang-ups off. Tests, and the processes
# that they start, get both signals as they would in the foreground.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one CPU thread, because SDPA and small matmuls may round differently with more."""
    with _threads(1):
        yield


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """Let PyTorch use two CPU threads, although `make test` gives each of its processes one."""
    with _threads(2):
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)
