"""Keep the caller's PyTorch settings from changing results.

PyTorch's default dtype and device never matter, because lastword states dtype and device wherever it creates a tensor.
Autocast and the settings of matmuls and attention do matter: `default_settings` replaces these settings while lastword
computes, then restores them.
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
def default_settings(device: torch.device = CPU) -> Iterator[None]:
    """Run a `with` block without autocast and with PyTorch's default settings of matmuls and attention.

    The caller's settings are restored afterwards. Autocast and the current GPU are settings of a thread, but the others
    belong to the process. Therefore, while any thread is in such a block, matmuls in the caller's other threads may be
    more exact than the caller asked for.

    Args:
        device: where the block computes. A GPU becomes the current one, because Triton launches kernels on the current
            GPU even if the tensors are on a different one.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        _saved.replace()
        stack.callback(_saved.restore)
        yield


class _Setting(NamedTuple):
    """A process-wide setting: functions to read and write it, and the values that do not change lastword's results."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    ours: tuple[
        Any, ...
    ]  # none of these changes results; the first is the one that lastword writes


def _read_old_precision() -> str:
    """Read the precision that PyTorch's older function reports; "highest" if newer settings contradict it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def _write_precision(backend: str, value: str) -> None:
    """Set the precision of a backend's fp32 matmuls; if the inherited value is already right, leave it inherited."""
    torch._C._set_fp32_precision_setter(backend, "matmul", "none")
    if torch._C._get_fp32_precision_getter(backend, "matmul") != value:
        torch._C._set_fp32_precision_setter(backend, "matmul", value)


def _settings() -> Iterator[_Setting]:
    # The older setting comes first, because writing it also writes the two settings that follow.
    yield _Setting(_read_old_precision, torch.set_float32_matmul_precision, ("highest",))
    for backend in ("cuda", "mkldnn"):
        read = partial(torch._C._get_fp32_precision_getter, backend, "matmul")
        yield _Setting(read, partial(_write_precision, backend), ("ieee", "none"))
    yield _Setting(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, (True,))
    flash = torch.backends.cuda.flash_sdp_enabled  # despite its name, for attention on the CPU too
    yield _Setting(flash, torch.backends.cuda.enable_flash_sdp, (True,))


class _SavedSettings:
    """Keeps the caller's settings of the process while at least one thread computes."""

    def __init__(self) -> None:
        self._settings = tuple(_settings())
        self._lock = Lock()
        self._computing = 0  # number of threads that compute
        self._callers: list[Any] | None = None  # the values to restore, if some were replaced

    def replace(self) -> None:
        """Count one more computing thread; if any of the caller's settings could change results, replace them all."""
        with self._lock:
            self._computing += 1
            found = [setting.read() for setting in self._settings]
            if self._are_ours(found):
                return
            self._callers = self._merge(found)
            for setting in self._settings:
                setting.write(setting.ours[0])

    def restore(self) -> None:
        """Count this thread as done; if no other thread computes, restore the caller's settings."""
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
        """Return the caller's values: the saved ones or, for a setting changed since then, its present value."""
        if self._callers is None:
            return found
        triples = zip(self._settings, found, self._callers, strict=True)
        return [old if now in setting.ours else now for setting, now, old in triples]


_saved = _SavedSettings()
