"""The caller's settings are put aside while we compute, and back afterwards."""

from contextlib import ExitStack
from threading import Barrier, Thread

import pytest
import torch
from helpers.caller_states import MATMUL, STATES, snapshot

from lastword.kernels.caller_settings import count_up, default_settings, integers

PLAIN = snapshot()
ASIDE = (
    "autocast to bfloat16",
    "matmuls medium",
    "matmuls high",
    "matmuls of oneDNN in bfloat16",
    "matmuls of CUDA in TF32",
    "all fp32 in bfloat16",
    "without oneDNN",
    "plain attention",
)


def exact() -> bool:
    """Whether matmuls and attention are those that we compute with."""
    return (
        not torch.is_autocast_enabled("cpu")
        and {each.fp32_precision for each in MATMUL.values()} <= {"none", "ieee"}
        and torch._C._get_mkldnn_enabled()
        and torch.backends.cuda.flash_sdp_enabled()
    )


@pytest.mark.parametrize("name", STATES)
def test_settings_are_put_aside_and_back(name: str) -> None:
    with STATES[name]():
        before = snapshot()
        assert exact() == (name not in (*ASIDE, "autocast to float16", "attention of GPUs"))
        with default_settings():
            assert exact()
            assert torch.get_float32_matmul_precision() == "highest"
            with default_settings():
                assert exact()
            assert exact()
        assert snapshot() == before
        with pytest.raises(ZeroDivisionError), default_settings():
            _ = 1 / 0
        assert snapshot() == before
    assert snapshot() == PLAIN


def test_what_is_inherited_stays_inherited() -> None:
    with STATES["all fp32 in bfloat16"]():
        with default_settings():
            assert exact()
        assert MATMUL["mkldnn"].fp32_precision == "bf16"
        torch.backends.fp32_precision = "tf32"
        assert MATMUL["mkldnn"].fp32_precision == "tf32"


def test_a_setting_changed_meanwhile_is_kept() -> None:
    with STATES["matmuls medium"]():
        with default_settings():
            torch.set_float32_matmul_precision("high")
        assert torch.get_float32_matmul_precision() == "high"
    with STATES["without oneDNN"](), default_settings():
        torch.backends.cuda.enable_flash_sdp(False)
    assert not torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(True)
    assert snapshot() == PLAIN


def test_settings_return_with_the_last_thread() -> None:
    inside, leave = Barrier(2), Barrier(2)

    def compute() -> None:
        with default_settings():
            inside.wait(10)
            leave.wait(10)

    with STATES["matmuls medium"]():
        before = snapshot()
        other = Thread(target=compute)
        other.start()
        inside.wait(10)
        with default_settings():
            assert exact()
        assert exact()  # the other thread still computes
        leave.wait(10)
        other.join(10)
        assert snapshot() == before


def test_the_device_of_a_gpu_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or ExitStack())
    with default_settings(torch.device("cuda", 1)):
        assert entered == [torch.device("cuda", 1)]
    with default_settings(torch.device("cpu")), default_settings():
        assert len(entered) == 1


@pytest.mark.parametrize("name", STATES)
def test_integers_are_int64_on_the_cpu(name: str) -> None:
    with STATES[name]():
        for made in (integers([3, 4]), count_up(3, 5)):
            assert (made.dtype, made.device.type, made.tolist()) == (torch.int64, "cpu", [3, 4])
        assert integers([]).dtype == torch.int64
