"""Strict JSON: anything else is refused with a one-line message, without importing torch."""

import subprocess
import sys

import pytest

from helpers.messages import refusal

from lastword.errors import ConfigError, InputError, WeightsError
from lastword.weights import parse_json, parse_object
from lastword.weights.files.header import read_header
from lastword.weights.json_fields import read_object, show_value

# Each content as bytes and as text, and the error's parts: what, got.
BAD = {
    "": ("not valid JSON (Expecting value at column 1)", None),
    '{"a": nope}': ("not valid JSON (Expecting value at column 7)", None),
    '{"a":\n\n nope}': ("not valid JSON (Expecting value at line 3, column 2)", None),
    '{"a": 1} 2': ("not valid JSON (Extra data at column 10)", None),
    '{"a": NaN}': ("not valid JSON (it holds NaN)", None),
    '{"a": [-Infinity]}': ("not valid JSON (it holds -Infinity)", None),
    '{"a": {"b": 1, "c": 2, "b": 3}}': ('not valid JSON (key "b" occurs twice)', None),
    "[" * 200_000: ("not valid JSON (nested too deeply)", None),
    "7": ("wrong content", "7"),
    '"text"': ("wrong content", '"text"'),
    "null": ("wrong content", "null"),
}


@pytest.mark.parametrize("encoded", [False, True], ids=["text", "bytes"])
@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_not_json_is_refused(text, encoded):
    what, got = BAD[text]
    with pytest.raises(InputError) as caught:
        parse_json(text.encode() if encoded else text, "a.jsonl:3", InputError)
    expected = None if got is None else "a JSON object"
    assert vars(caught.value) == vars(InputError("a.jsonl:3", what, got=got, expected=expected))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text():
    with pytest.raises(ConfigError) as caught:
        parse_json(b'{"a": "\xff"}', "file")
    assert (caught.value.where, caught.value.what) == ("file", "not UTF-8 at byte 7")


def test_objects_and_lists():
    assert parse_json("[1, 2.5]", "file") == [1, 2.5]
    assert parse_object(b' {"a": null, "b": "\xc3\xbc"}\n', "file") == {"a": None, "b": "ü"}
    with pytest.raises(ConfigError) as caught:
        parse_object("[1]", "file")
    assert (caught.value.what, caught.value.got) == ("wrong content", "a list")
    assert caught.value.expected == "a JSON object"


def test_a_key_twice_may_be_allowed():
    assert parse_object('{"a": 1, "a": 2}', "file", unique_keys=False) == {"a": 2}
    with pytest.raises(ConfigError) as caught:
        parse_object('{"a": NaN}', "file", unique_keys=False)
    assert caught.value.what == "not valid JSON (it holds NaN)"


def test_values_are_shown_in_one_short_line():
    assert show_value({"a": [1, "ü\n"]}) == '{"a": [1, "\\u00fc\\n"]}'
    assert show_value("x" * 100) == '"' + "x" * 58 + "…"
    assert show_value(10**5000) == "a huge int"
    assert show_value({1}) == "{1}"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1191586416\n"
PAGE, FAILED = "a web page, not the file itself", "The download failed: fetch the model again."
CONVERT = "Name a folder with the model in the safetensors format."
PICKLE = "a Python pickle, as torch.save writes it, not the file itself"
FOREIGN = {
    "lfs": (POINTER, "a Git LFS pointer, not the file itself",
            "Run `git lfs pull` in its folder, or fetch the model again."),
    "annex": (b"/annex/objects/SHA256E-s9--00.json\n", "a git-annex pointer, not the file itself",
              "Run `git annex get` in its folder, or fetch the model again."),
    "html": (b"<!DOCTYPE html><html></html>", PAGE, FAILED),
    "html-after-a-line": (b"\xef\xbb\xbf\r\n  <html lang=en>", PAGE, FAILED),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', PAGE, FAILED),
    "hub": (b"Entry not found", "the hub's message of an error, not the file itself", FAILED),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", "a zip archive, as torch.save writes it, not the file itself", CONVERT),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", PICKLE, CONVERT),
    "gguf": (b"GGUF\x03\x00\x00\x00\x36\x01\x00\x00", "a GGUF file, not the file itself", CONVERT),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00", "a gzip archive, not the file itself", "Unpack it first."),
    "empty": (b"", "empty", FAILED),
    "zeros": (bytes(5000), "filled with zeros", FAILED),
}  # fmt: skip


@pytest.mark.parametrize("read", [read_object, read_header])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named(tmp_path, name, read):
    content, what, remedy = FOREIGN[name]
    path = tmp_path / "file"
    path.write_bytes(content)
    with refusal(WeightsError, where=str(path), what=what, got=None, remedy=remedy):
        read(path)


def test_a_header_whose_length_begins_like_a_pickle(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((0x280).to_bytes(8, "little") + b"{}".ljust(0x280))
    assert read_header(path) == {}


def test_strict_json_and_headers_cost_no_torch():
    code = (
        "import sys; from lastword.weights import growing_header, locate, parse_json; "
        "parse_json('[]', 'x'); growing_header('a', 'F32', 3, lambda rows: {})(2); print('torch' in sys.modules); "
        "from lastword.weights import Checkpoint; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
