"""Which devices a name stands for, and what is said of a name that stands for none."""

import pytest
import torch

from lastword import DeviceError
from lastword.device import choose_devices


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, ["cuda"]),
        ("cpu", ["cpu"]),
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
    ("name", "message"),
    [
        ("tpu", "device: unknown; got 'tpu'"),
        ("tpu,tpu", "device: unknown; got 'tpu'"),
        ("cuda:0,x", "device: unknown; got 'x'"),
        ("cuda:0,", "device: unknown; got ''"),
        ("cpu,1", "device: unknown; got '1'"),
        ("0,1", "device: unknown; got '0'"),
        ("cuda:0,4", "device: not there; got 'cuda:4', found 4 GPUs"),
        ("cuda:1,1", "device: a GPU is named twice; got 'cuda:1,1'"),
        ("cuda:0,cpu", "device: of two kinds; got 'cuda:0,cpu'"),
        ("cuda,cuda:1", "device: one of several GPUs without its number; got 'cuda,cuda:1'"),
    ],
)
def test_refused(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        choose_devices(name)


def test_all_of_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="not there; got 'cuda', found 0 GPUs"):
        choose_devices("cuda:all")
