"""The devices that a name stands for, and the errors for invalid names."""

from pathlib import Path

import pytest
import torch
from helpers.messages import refusal

from lastword import DeviceError, Embedder
from lastword.runtime.device import choose_device, choose_devices


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, ["cuda:0"]),
        ("cuda", ["cuda:0"]),
        ("cpu", ["cpu"]),
        ("cpu:0", ["cpu"]),
        (torch.device("cpu"), ["cpu"]),
        ("cuda:3", ["cuda:3"]),
        (torch.device("cuda", 2), ["cuda:2"]),
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("cuda:3, 1", ["cuda:3", "cuda:1"]),
        ("cuda:0,cuda:2", ["cuda:0", "cuda:2"]),
        ("cuda:all", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cpu,cpu,cpu", ["cpu", "cpu", "cpu"]),
    ],
)
def test_devices(name: str | torch.device | None, expected: list[str]) -> None:
    assert [str(device) for device in choose_devices(name)] == expected


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tpu", {"what": "unknown", "got": "'tpu'"}),
        ("tpu,tpu", {"what": "unknown", "got": "'tpu'"}),
        ("a" * 5000, {"what": "unknown", "got": f"'{'a' * 27}...{'a' * 28}'"}),
        (
            "cpu:1",
            {"what": "not there", "got": "'cpu:1'", "expected": "'cpu', which has no number"},
        ),
        ("cpu:256", {"what": "not there", "got": "'cpu:256'"}),
        ("cuda:-1", {"what": "unknown", "got": "'cuda:-1'"}),
        (3.5, {"what": "unknown", "got": "3.5"}),
        ("cuda:0,x", {"what": "unknown", "got": "'x'"}),
        ("cuda:0,", {"what": "unknown", "got": "''"}),
        ("cpu,1", {"what": "unknown", "got": "'1'"}),
        ("0,1", {"what": "unknown", "got": "'0'"}),
        ("tpu", {"expected": "'cpu', 'cuda', 'cuda:N', 'cuda:0,1' or 'cuda:all'"}),
        ("cuda:4", {"what": "not there", "got": "'cuda:4'", "expected": "'cuda:0' to 'cuda:3'"}),
        ("cuda:0,4", {"what": "not there", "got": "'cuda:4'", "expected": "'cuda:0' to 'cuda:3'"}),
        # stored in 8 bits by PyTorch, these become GPUs 0 and 1, no GPU, and GPU -25
        ("cuda:256", {"what": "not there", "got": "'cuda:256'"}),
        ("cuda:0,257", {"what": "not there", "got": "'cuda:257'"}),
        ("cuda:255", {"what": "not there", "got": "'cuda:255'"}),
        ("cuda:999", {"what": "not there", "got": "'cuda:999'"}),
        ("cuda:1,1", {"what": "a GPU is named twice", "got": "'cuda:1,1'"}),
        ("cuda:0,cpu", {"what": "mixes GPUs and CPUs", "got": "'cuda:0,cpu'"}),
        ("cuda,cuda:1", {"what": "one of several GPUs has no number", "got": "'cuda,cuda:1'"}),
    ],
)
def test_refused(name: str, parts: dict[str, str]) -> None:
    with refusal(DeviceError, where="device", **parts):
        choose_devices(name)


@pytest.mark.parametrize("kind", ["mps", "mps:0", "xpu", "meta", "hip", "xla", "hpu", "vulkan"])
@pytest.mark.parametrize("convert", [str, torch.device])
def test_other_kinds_of_devices(kind: str, convert: type) -> None:
    remedy = "Use 'cpu', which works on every machine, including Apple's; 'cuda' is for the GPUs of NVIDIA and AMD."
    what = "of a kind that is not supported"
    with refusal(DeviceError, where="device", what=what, got=repr(kind), remedy=remedy):
        choose_devices(convert(kind))


def test_cuda_is_the_gpu_current_when_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    for name in (None, "cuda", torch.device("cuda")):
        assert choose_devices(name) == (torch.device("cuda", 2),)
    assert choose_devices("cuda:1") == (torch.device("cuda", 1),)


def test_all_gpus_of_a_machine_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    expected = "'cpu': PyTorch finds no GPU"
    with refusal(DeviceError, what="not there", got="'cuda'", expected=expected):
        choose_devices("cuda:all")


def test_the_error_for_one_device_does_not_mention_several() -> None:
    with refusal(DeviceError, got="'cuda:0,1'", expected="'cpu', 'cuda' or 'cuda:N'"):
        choose_device("cuda:0,1")


def test_every_device_must_support_the_mode(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_fp8(device: torch.device) -> None:
        if device.index == 1:
            raise DeviceError(str(device), "no fp8")

    monkeypatch.setattr("lastword.runtime.device.check_fp8", check_fp8)
    with refusal(DeviceError, where="cuda:1", what="no fp8"):
        Embedder(tiny_checkpoint, device="cuda:0,1", quantize="fp8")
