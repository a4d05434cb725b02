"""Settings of PyTorch that a caller may have made; each is a context manager that makes one, then restores the old."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

State = Callable[[], AbstractContextManager[object]]
MATMUL = {name: getattr(torch.backends, name).matmul for name in ("mkldnn", "cuda")}


class PassOn(TorchFunctionMode):
    """A mode that changes nothing, like a caller's logger or profiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def _set(read: Callable[[], Any], write: Callable[[Any], object], value: object) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def _default(dtype: torch.dtype) -> State:
    return partial(_set, torch.get_default_dtype, torch.set_default_dtype, dtype)


def _attribute(owner: object, name: str, value: object) -> State:
    return partial(_set, partial(getattr, owner, name), partial(setattr, owner, name), value)


def _write_precision(value: str) -> None:
    """Write the older setting. This also writes the newer ones; for "highest", reset those to "none"."""
    torch.set_float32_matmul_precision(value)
    if value == "highest":
        for each in MATMUL.values():
            each.fp32_precision = "none"


def _read_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # while the newer settings contradict the older one
        return "highest"


def _precision(value: str) -> State:
    return partial(_set, _read_precision, _write_precision, value)


STATES: dict[str, State] = {
    "float16 by default": _default(torch.float16),
    "bfloat16 by default": _default(torch.bfloat16),
    "float64 by default": _default(torch.float64),
    "autocast to bfloat16": partial(torch.autocast, "cpu", torch.bfloat16),
    "autocast to float16": partial(torch.autocast, "cpu", torch.float16),
    "in a device context": partial(torch.device, "meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": partial(torch.set_grad_enabled, True),
    "deterministic": partial(
        _set,
        torch.are_deterministic_algorithms_enabled,
        torch._C._set_deterministic_algorithms,
        True,
    ),
    "matmuls medium": _precision("medium"),
    "matmuls high": _precision("high"),
    "matmuls of oneDNN in bfloat16": _attribute(MATMUL["mkldnn"], "fp32_precision", "bf16"),
    "matmuls of CUDA in TF32": _attribute(MATMUL["cuda"], "fp32_precision", "tf32"),
    "all fp32 in bfloat16": _attribute(torch.backends, "fp32_precision", "bf16"),
    "without oneDNN": partial(
        _set, torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, False
    ),
    "plain attention": partial(sdpa_kernel, SDPBackend.MATH),
    "attention of GPUs": partial(sdpa_kernel, SDPBackend.EFFICIENT_ATTENTION),
    "denormals flushed": partial(_set, lambda: False, torch.set_flush_denormal, True),
    "anomalies detected": partial(torch.autograd.set_detect_anomaly, True),
    "a function mode": PassOn,
}


def snapshot() -> dict[str, object]:
    """Return the current values of PyTorch's settings by name."""
    asked: dict[str, Callable[[], object]] = {
        "dtype": torch.get_default_dtype,
        "device": torch.get_default_device,
        "autocast": lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "inference": torch.is_inference_mode_enabled,
        "gradients": torch.is_grad_enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled,
        "onednn": torch._C._get_mkldnn_enabled,
        "attention": lambda: (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "fp32": lambda: torch.backends.fp32_precision,
        "matmul": _read_precision,
        "threads": torch.get_num_threads,
        **{name: partial(getattr, each, "fp32_precision") for name, each in MATMUL.items()},
    }
    return {name: ask() for name, ask in asked.items()}
