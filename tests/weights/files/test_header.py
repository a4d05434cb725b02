"""Damaged safetensors headers: each kind of damage is found and named before any tensor is read."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from lastword.errors import WeightsError
from lastword.weights.files.header import growing_header, read_header
from lastword.weights.files.writer import write_safetensors

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
}


def pack(header: object, payload: bytes = bytes(22)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + payload


def entry(name: str, **changes: object) -> dict:
    return {key: value | changes if key == name else value for key, value in GOOD.items()}


def test_good(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack(GOOD | {"__metadata__": {"format": "pt"}}))
    found = read_header(path)
    assert list(found) == ["a", "b"]
    assert found["b"].start + found["b"].num_bytes == path.stat().st_size
    assert (found["a"].dtype, found["a"].shape) == ("F32", (2, 2))


DOUBLE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
TRUNCATED, HUGE = "truncated", "at most 16777216"
ENTRY, SIZES = "dtype, shape and data_offsets", "a list of at most 64 sizes"
# The bytes, and the error's parts: where (in the file), what, and if known got and expected.
BAD = {
    "seven-bytes": (b"1234567", "", TRUNCATED, "7 bytes", "a safetensors header"),
    "cut-header": (pack(GOOD)[:40], "", TRUNCATED, "40 bytes", "at least 137 for the header"),
    "cut-payload": (pack(GOOD)[:-1], "", TRUNCATED, "158 bytes", "159"),
    "no-payload": (pack(GOOD, b""), "", TRUNCATED, "137 bytes", "159"),
    "trailing": (pack(GOOD, bytes(23)), "", "trailing bytes", "160 bytes", "159"),
    "no-header": (b'{"error": "no such model"}', "", "not a safetensors file",
                  "header length 2482168881970750075, and the first bytes b'{\"error\": \"no su'", HUGE),
    "huge-length": (struct.pack("<Q", 2**63) + b"{}", "", "not a safetensors file",
                    f"header length {2**63}, and the first bytes b'" + r"\x00" * 7 + r"\x80{}'", HUGE),
    "zero-length": (pack(b"", b"x"), ": header", "not valid JSON (column 1: a value is missing)", None, None),
    "not-utf8": (pack(b'{"\xff": 1}'), ": header", "not UTF-8 at byte 2", None, None),
    "not-json": (pack(b"{nope}"), ": header", "not valid JSON (", None, None),
    "list": (pack([]), ": header", "wrong content", "a list", "a JSON object"),
    "duplicate": (pack(DOUBLE, bytes(4)), ": header", 'not valid JSON (key "a" occurs twice)', None, None),
    "deep": (pack(b"[" * 100_000), ": header", "not valid JSON (nested too deeply)", None, None),
    "name": (pack({"a\n\x1b[31m" + "b" * 10**6: 5}), ': tensor "a\\n\\u001b[31m' + "b" * 45 + "…", "wrong entry", "5",
             ENTRY),
    "dtype-long": (pack(entry("b", dtype="Q" * 10**6)), ': tensor "b"', "unknown dtype", '"' + "Q" * 58 + "…",
                   "F32, BF16 or F16"),
    "duplicate-late": (pack(b"{" + b"".join(b'"%d":0,' % i for i in range(100_000)) + b'"99999":0}'), ": header",
                       'not valid JSON (key "99999" occurs twice)', None, None),
    "metadata-list": (pack(GOOD | {"__metadata__": [1]}), ": header: __metadata__", "wrong value", "[1]", "strings"),
    "metadata": (pack(GOOD | {"__metadata__": {"n": 1}}), ": header: __metadata__", "wrong value",
                 '{"n": 1}', "strings"),
    "entry-number": (pack(GOOD | {"c": 5}), ': tensor "c"', "wrong entry", "5", ENTRY),
    "entry-keys": (pack(entry("a", extra=1)), ': tensor "a"', "wrong entry",
                   '["dtype", "shape", "data_offsets", "extra"]', ENTRY),
    "dtype-unknown": (pack(entry("b", dtype="Q4_0")), ': tensor "b"', "unknown dtype", '"Q4_0"', "F32, BF16 or F16"),
    "dtype-flip": (pack(entry("b", dtype="BF17")), ': tensor "b"', "unknown dtype", '"BF17"', "F32, BF16 or F16"),
    "dtype-list": (pack(entry("b", dtype=["F32"])), ': tensor "b"', "unknown dtype", '["F32"]', "F32, BF16 or F16"),
    "shape-flip": (pack(entry("a", shape=[2, 3])), ': tensor "a"', "wrong size for F32 [2, 3]", "16 bytes", "24"),
    "shape-negative": (pack(entry("a", shape=[-2, -2])), ': tensor "a"', "wrong shape", "[-2, -2]", SIZES),
    "shape-rank": (pack(entry("a", shape=[1] * 65)), ': tensor "a"', "wrong shape",
                   "[" + "1, " * 19 + "1…", SIZES),
    "shape-product": (pack(entry("a", shape=[2**62] * 200_000)), ': tensor "a"', "wrong shape",
                      f"[{2**62}, {2**62}, {2**62}"[:59] + "…", SIZES),
    "shape-float": (pack(entry("a", shape=[2.0, 2])), ': tensor "a"', "wrong shape", "[2.0, 2]", SIZES),
    "shape-string": (pack(entry("a", shape="22")), ': tensor "a"', "wrong shape", '"22"', SIZES),
    "shape-bool": (pack(entry("a", shape=[True, 4])), ': tensor "a"', "wrong shape", "[true, 4]", SIZES),
    "shape-overflow": (pack(entry("a", shape=[2**62, 2**62])), ': tensor "a"',
                       f"wrong size for F32 [{2**62}, {2**62}]", "16 bytes", str(2**126)),
    "offsets-three": (pack(entry("a", data_offsets=[0, 16, 16])), ': tensor "a"', "wrong data_offsets",
                      "[0, 16, 16]", "[begin, end]"),
    "offsets-reversed": (pack(entry("a", data_offsets=[16, 0])), ': tensor "a"', "wrong data_offsets",
                         "[16, 0]", "[begin, end]"),
    "offsets-beyond": (pack({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}), "", TRUNCATED,
                       "114 bytes", str(2**40 + 92)),
    "same-place": (pack({"a": GOOD["a"], "b": GOOD["a"]}, bytes(16)), ': tensor "b"', "overlaps the previous tensor",
                   "offset 138", "154"),
    "overlap": (pack(entry("b", data_offsets=[10, 16])), ': tensor "b"', "overlaps the previous tensor",
                "offset 147", "153"),
    "gap": (pack(entry("b", data_offsets=[18, 24]), bytes(24)), ': tensor "b"', "a gap before the tensor",
            "offset 155", "153"),
    "gap-at-start": (pack({"a": GOOD["a"] | {"data_offsets": [4, 20]}}, bytes(20)), ': tensor "a"',
                     "a gap before the tensor", "offset 77", "73"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_damage_is_named(tmp_path, name):
    content, place, what, got, expected = BAD[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_header(path)
    error = caught.value
    assert error.where == f"{path}{place}"
    assert error.what.startswith(what)
    assert (error.got, error.expected) == (got, expected)
    remedies = {TRUNCATED: "Download it again.", "wrong size": "The header is damaged."}
    assert error.remedy == next((r for w, r in remedies.items() if what.startswith(w)), None)
    assert "\n" not in str(error)
    assert len(str(error)) < 400 + len(str(path))


def test_order_and_empty_tensors_do_not_matter(tmp_path):
    empty = {"dtype": "F64", "shape": [3, 0, 2**62], "data_offsets": [16, 16]}
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack({"__metadata__": None, "b": GOOD["b"], "empty": empty, "a": GOOD["a"]}))
    found = read_header(path)
    assert list(found) == ["a", "empty", "b"]
    assert (found["empty"].shape, found["empty"].num_bytes) == ((3, 0, 2**62), 0)


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(WeightsError) as caught:
        read_header(tmp_path / "m.safetensors")
    assert vars(caught.value) == vars(
        WeightsError(
            str(tmp_path / "m.safetensors"),
            "no such file",
            remedy="Download the checkpoint again.",
        )
    )
    with pytest.raises(WeightsError) as caught:
        read_header(tmp_path)
    assert (caught.value.where, caught.value.what) == (
        str(tmp_path),
        "cannot be read (it is a folder)",
    )


@pytest.mark.parametrize("metadata", [{}, {"made by": "ü"}])
def test_a_header_for_any_number_of_rows_has_one_length(tmp_path, metadata):
    header = growing_header("v", "F16", 3, lambda rows: {**metadata, "texts": str(rows)})
    begun = header(10**15)
    for rows in (0, 1, 12345, 10**15):
        assert len(header(rows)) == len(begun)
        assert len(begun) % 8 == 0
    path = tmp_path / "m.safetensors"
    path.write_bytes(begun)
    with path.open("r+b") as file:
        file.seek(len(begun))
        file.write(bytes(2 * 3 * 2))
        file.seek(0)
        file.write(header(2))
    assert load_file(path)["v"].shape == (2, 3)
    (info,) = read_header(path).values()
    assert (info.dtype, info.shape, info.start) == ("F16", (2, 3), len(begun))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {**metadata, "texts": "2"}


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bit=st.integers(0, 10_000), data=st.data())
def test_a_flipped_bit_never_changes_the_tensors_in_silence(tmp_path, bit, data):
    """A flipped bit before the payload is found, or changes no dtype, shape or position of a tensor."""
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
        assert error.where.startswith(str(path))  # noqa: PT017  either outcome is allowed
        return
    with safe_open(path, framework="pt") as file:  # what is accepted here, is there
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {name: info.shape for name, info in found.items()}
    # The only other effects are a different name, a dtype of the same size, or swapped sizes: the checkpoint's
    # exact table of names, shapes and dtypes refuses those.
    assert [i.num_bytes for i in found.values()] == [i.num_bytes for i in good.values()]
