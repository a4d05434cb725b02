"""Names of dtypes match torch and the format, and a tensor's bytes are its elements in row-major order."""

import gc
import struct
import warnings

import pytest
import torch

from lastword.weights.files.dtypes import (
    ELEMENT_SIZES,
    WEIGHT_DTYPES,
    dtype_name,
    safetensors_name,
    tensor_bytes,
    torch_dtype,
)


@pytest.mark.parametrize("stored", ELEMENT_SIZES)
def test_the_table_agrees_with_torch(stored):
    dtype = torch_dtype(stored)
    assert dtype.itemsize == ELEMENT_SIZES[stored]
    assert safetensors_name(dtype) == stored
    assert getattr(torch, dtype_name(dtype)) is dtype


def test_dtypes_of_weights_and_those_without_a_name():
    found = [torch_dtype(stored) for stored in WEIGHT_DTYPES]
    assert found == [torch.float32, torch.bfloat16, torch.float16]
    assert [dtype_name(dtype) for dtype in found] == ["float32", "bfloat16", "float16"]
    assert safetensors_name(torch.complex128) is None


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4),
        torch.arange(12.0).view(3, 4).T,
        torch.arange(12.0).view(3, 4)[:, 1::2],
        torch.ones(1, 4).expand(5, 4),
        torch.tensor(3.5),
        torch.zeros(0, 4),
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=["plain", "transposed", "strided", "expanded", "scalar", "empty", "parameter"],
)
def test_bytes_are_the_elements_in_row_order(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = tensor_bytes(tensor)
    values = tensor.detach().flatten().tolist()
    assert bytes(data) == struct.pack(f"={len(values)}f", *values)
    assert len(data) == tensor.nbytes
    assert data.readonly


def test_bytes_of_other_dtypes():
    x = torch.tensor([1.0, -2.0])
    assert bytes(tensor_bytes(x.bfloat16())) == bytes.fromhex("803f 00c0")
    assert bytes(tensor_bytes(x.half())) == struct.pack("=2e", 1.0, -2.0)
    assert bytes(tensor_bytes(x.to(torch.int64))) == struct.pack("=2q", 1, -2)
    assert bytes(tensor_bytes(x > 0)) == b"\1\0"


def test_bytes_are_the_tensors_own_memory_and_keep_it():
    tensor = torch.full((1 << 16,), 7.0)
    data = tensor_bytes(tensor)
    tensor[0] = 8.0
    assert bytes(data[:4]) == struct.pack("=f", 8.0)
    tail = data[4:]
    del tensor, data
    gc.collect()
    others = [torch.zeros(1 << 16) for _ in range(8)]
    assert bytes(tail) == struct.pack("=f", 7.0) * ((1 << 16) - 1)
    assert len(others) == 8
