"""Damaged safetensors headers: each kind of damage is found before any payload is read, and named."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lastword.errors import WeightsError
from lastword.weights.files.header import read_header
from lastword.weights.files.writer import write_safetensors

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
}


def packed(header: object, payload: bytes = bytes(22)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + payload


def entry(name: str, **changes: object) -> dict:
    return {key: value | changes if key == name else value for key, value in GOOD.items()}


def test_good(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(packed(GOOD | {"__metadata__": {"format": "pt"}}))
    found = read_header(path)
    assert list(found) == ["a", "b"]
    assert found["b"].start + found["b"].num_bytes == path.stat().st_size
    assert (found["a"].dtype, found["a"].shape) == ("F32", (2, 2))


DOUBLE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
BAD = {
    "empty": (b"", "truncated; got 0 bytes"),
    "seven-bytes": (b"1234567", "truncated; got 7 bytes"),
    "cut-header": (packed(GOOD)[:40], "truncated; got 40 bytes"),
    "cut-payload": (packed(GOOD)[:-1], "truncated"),
    "no-payload": (packed(GOOD, b""), "truncated"),
    "trailing": (packed(GOOD, bytes(23)), "trailing bytes"),
    "html-page": (b"<!DOCTYPE html><html></html>", "not a safetensors file"),
    "lfs-pointer": (b"version https://git-lfs.github.com/spec/v1", "not a safetensors file"),
    "huge-length": (struct.pack("<Q", 2**63) + b"{}", "header length"),
    "zero-length": (packed(b""), "not valid JSON"),
    "not-utf8": (packed(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "not-json": (packed(b"{nope}"), "not valid JSON"),
    "list": (packed([]), "expected a JSON object"),
    "duplicate": (packed(DOUBLE, bytes(4)), '"a" occurs twice'),
    "deep": (packed(b"[" * 100_000), "nested too deeply"),
    "metadata": (packed(GOOD | {"__metadata__": {"n": 1}}), "__metadata__"),
    "entry-number": (packed(GOOD | {"c": 5}), 'tensor "c"'),
    "entry-keys": (packed(entry("a", extra=1)), 'tensor "a"'),
    "dtype-unknown": (packed(entry("b", dtype="Q4_0")), "Q4_0"),
    "dtype-flip": (packed(entry("b", dtype="BF17")), "BF17"),
    "dtype-list": (packed(entry("b", dtype=["F32"])), "unknown dtype"),
    "shape-flip": (packed(entry("a", shape=[2, 3])), "got 16 bytes, expected 24"),
    "shape-negative": (packed(entry("a", shape=[-2, -2])), "shape"),
    "shape-bool": (packed(entry("a", shape=[True, 4])), "shape"),
    "shape-overflow": (packed(entry("a", shape=[2**62, 2**62])), "expected"),
    "offsets-three": (packed(entry("a", data_offsets=[0, 16, 16])), "data_offsets"),
    "offsets-reversed": (packed(entry("a", data_offsets=[16, 0])), "data_offsets"),
    "overlap": (packed(entry("b", data_offsets=[10, 16])), "overlaps"),
    "gap": (packed(entry("b", data_offsets=[18, 24]), bytes(24)), "gap"),
    "gap-at-start": (packed({"a": GOOD["a"] | {"data_offsets": [4, 20]}}, bytes(20)), "gap"),
}


@pytest.mark.parametrize("name", BAD)
def test_damage_is_named(tmp_path, name):
    content, what = BAD[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        read_header(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert what in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        read_header(tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_header(tmp_path)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bit=st.integers(0, 10_000), data=st.data())
def test_a_flipped_bit_never_changes_the_tensors_in_silence(tmp_path, bit, data):
    """A flip anywhere before the payload is found, or leaves every dtype, shape and place as it was."""
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"weight": torch.ones(4, 8), "other": torch.ones(3).bfloat16()})
    good = read_header(path)
    raw = bytearray(path.read_bytes())
    end = min(info.start for info in good.values())
    bit %= end * 8
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(raw))
    try:
        found = read_header(path)
    except WeightsError as error:
        assert str(error).startswith(str(path))  # noqa: PT017  either outcome is allowed
        return
    # What remains is another name or dtype of the same size, or transposed sizes: the checkpoint's exact
    # table of names, shapes and dtypes refuses those.
    assert [i.num_bytes for i in found.values()] == [i.num_bytes for i in good.values()]
