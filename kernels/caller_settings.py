"""Keep the caller's PyTorch settings from changing results, by setting them aside while lastword computes.

A default dtype or device never matters, because every tensor is made with both stated. Autocast and the settings of
matmuls and attention do matter: `isolated` sets them aside and restores them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

CPU = torch.device("cpu")


def integers(values: Sequence[int]) -> Tensor:
    """Return the values as int64 [N] on the CPU."""
    return torch.tensor(values, dtype=torch.int64, device=CPU)


def count_up(start: int, end: int) -> Tensor:
    """Return the integers from `start` up to but not including `end`, as int64 on the CPU."""
    return torch.arange(start, end, dtype=torch.int64, device=CPU)


@contextmanager
def isolated(device: torch.device = CPU) -> Iterator[None]:
    """Run the `with` block without autocast, and with PyTorch's default settings of matmuls and attention.

    Autocast and the current GPU are settings of a thread; the others belong to the process. So while any thread is in
    such a block, matmuls in the caller's other threads may be more exact than requested. The caller's settings are
    restored afterwards.

    Args:
        device: where the block computes. A GPU becomes the current one, because Triton launches kernels on the current
            GPU, wherever the tensors are.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        _aside.take()
        stack.callback(_aside.put_back)
        yield


class _Setting(NamedTuple):
    """A setting of the process: functions to read and write it, and the values that leave results unchanged."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    ours: tuple[Any, ...]  # each of these will do; the first is the one written


def _read_old_precision() -> str:
    """Read the setting of PyTorch's older function; "highest" while newer settings contradict it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def _write_precision(backend: str, value: str) -> None:
    """Set the precision of a backend's fp32 matmuls; a backend that inherits this value keeps inheriting it."""
    torch._C._set_fp32_precision_setter(backend, "matmul", "none")
    if torch._C._get_fp32_precision_getter(backend, "matmul") != value:
        torch._C._set_fp32_precision_setter(backend, "matmul", value)


def _settings() -> Iterator[_Setting]:
    # First: writing it writes the next two as well.
    yield _Setting(_read_old_precision, torch.set_float32_matmul_precision, ("highest",))
    for backend in ("cuda", "mkldnn"):
        read = partial(torch._C._get_fp32_precision_getter, backend, "matmul")
        yield _Setting(read, partial(_write_precision, backend), ("ieee", "none"))
    yield _Setting(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, (True,))
    flash = torch.backends.cuda.flash_sdp_enabled  # despite its name, for attention on the CPU too
    yield _Setting(flash, torch.backends.cuda.enable_flash_sdp, (True,))
    engines = [e for e in ("x86", "fbgemm") if e in torch.backends.quantized.supported_engines]
    if engines:  # they run the int8 matmuls
        quantized = torch.backends.quantized
        read, write = partial(getattr, quantized, "engine"), partial(setattr, quantized, "engine")
        yield _Setting(read, write, tuple(engines))


class _Aside:
    """Keeps the process's settings aside while at least one thread computes."""

    def __init__(self) -> None:
        self._settings = tuple(_settings())
        self._lock = Lock()
        self._computing = 0  # number of threads that compute
        self._callers: list[Any] | None = None  # the values to put back, if any were not ours

    def take(self) -> None:
        """Count this thread as computing, and put the caller's settings aside if any could change results."""
        with self._lock:
            self._computing += 1
            found = [setting.read() for setting in self._settings]
            if self._are_ours(found):
                return
            self._callers = self._merge(found)
            for setting in self._settings:
                setting.write(setting.ours[0])

    def put_back(self) -> None:
        """Count this thread as done, and put the caller's settings back if no other thread computes."""
        with self._lock:
            self._computing -= 1
            if self._computing or self._callers is None:
                return
            values = self._merge([setting.read() for setting in self._settings])
            for setting, value in zip(self._settings, values, strict=True):
                setting.write(value)
            self._callers = None

    def _are_ours(self, values: list[Any]) -> bool:
        return all(v in setting.ours for setting, v in zip(self._settings, values, strict=True))

    def _merge(self, found: list[Any]) -> list[Any]:
        """Return the caller's values: those put aside, or the present one of a setting that was changed since then."""
        if self._callers is None:
            return found
        triples = zip(self._settings, found, self._callers, strict=True)
        return [old if now in setting.ours else now for setting, now, old in triples]


_aside = _Aside()
