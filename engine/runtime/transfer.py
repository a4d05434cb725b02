"""Vectors on their way from the device to the host, without holding up either. Knows tensors only."""

from collections.abc import Callable

import torch
from torch import Tensor


def to_host(vectors: Tensor) -> Callable[[], Tensor]:
    """Start copying vectors to pinned memory; the function returned waits for this copy alone and gives them.

    PyTorch keeps the device's memory until work queued before has read it. On a CPU nothing is copied.
    """
    if vectors.device.type == "cpu":
        return lambda: vectors
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.current_stream(vectors.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
