"""Untrusted files: only regular ones are opened, what exists is never taken as absent, other formats are named."""

import json
import os
import socket
import struct

import pytest
from helpers.messages import refusal

from lastword.errors import ConfigError, WeightsError
from lastword.weights.files import reading
from lastword.weights.files.hashes import hash_files
from lastword.weights.files.header import read_header
from lastword.weights.files.reading import has_file, open_regular, read_bytes
from lastword.weights.json_fields import read_object, read_optional_object

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1191586416\n"
PAGE, FAILED = "a web page, not the file itself", "The download failed: fetch it again."
CONVERT = "Name a folder with the model in the safetensors format."
PICKLE = "a Python pickle, as torch.save writes it, not the file itself"
FOREIGN = {
    "lfs": (POINTER, "a Git LFS pointer, not the file itself",
            "Run `git lfs pull` in its folder, or fetch it again."),
    "annex": (b"/annex/objects/SHA256E-s9--00.json\n", "a git-annex pointer, not the file itself",
              "Run `git annex get` in its folder, or fetch it again."),
    "html": (b"<!DOCTYPE html><html></html>", PAGE, FAILED),
    "html-after-a-line": (b"\xef\xbb\xbf\r\n  <html lang=en>", PAGE, FAILED),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', PAGE, FAILED),
    "hub": (b"Entry not found", "an error message from the hub, not the file itself", FAILED),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08", "a zip archive, as torch.save writes it, not the file itself", CONVERT),
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


@pytest.mark.parametrize("name", FOREIGN)
def test_a_caller_may_know_better_why_a_file_is_empty(tmp_path, name):
    content, what, remedy = FOREIGN[name]
    (tmp_path / "recipe").write_bytes(content)
    wanted = "Name a recipe." if not content.strip(b"\0") else remedy
    with refusal(WeightsError, what=what, remedy=wanted):
        read_bytes(tmp_path / "recipe", remedy="Name a recipe.")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


LINK, NO_NAME = "a link that leads nowhere", "no file can have this name"
# What stands at the path, and what is said; None: nothing is there.
PLACES = {
    "pipe": (os.mkfifo, "cannot be read (it is a pipe)"),
    "folder": (lambda path: path.mkdir(), "cannot be read (it is a folder)"),
    "socket": (make_socket, "cannot be read (it is a socket)"),
    "zero": (lambda path: path.symlink_to("/dev/zero"), "cannot be read (it is a device)"),
    "full": (lambda path: path.symlink_to("/dev/full"), "cannot be read (it is a device)"),
    "dangling": (lambda path: path.symlink_to("gone"), LINK),
    "dangling-twice": (
        lambda path: (path.symlink_to("l"), path.with_name("l").symlink_to("x")),
        LINK,
    ),
    "loop": (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links)"),
    "absent": (lambda path: None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("read", [read_object, read_optional_object, has_file, read_header])
def test_what_is_no_regular_file(tmp_path, name, read):
    make, what = PLACES[name]
    path = tmp_path / "f"
    make(path)
    if what is None and read in (read_optional_object, has_file):
        assert not read(path)
        return
    with refusal(WeightsError, where=str(path), what=what or "no such file"):
        read(path)


NAMES = {
    "null": ("a\0b", NO_NAME),
    "surrogate": ("\ud800", NO_NAME),
    "long": ("x" * 300, "File name too long"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("read", [read_object, read_optional_object, has_file, read_header])
def test_names_that_no_file_can_have(tmp_path, name, read):
    text, why = NAMES[name]
    path = tmp_path / text
    with refusal(WeightsError, where=str(path), what=f"cannot be read ({why})"):
        read(path)


@pytest.mark.parametrize("read", [read_object, read_optional_object, has_file, read_header])
def test_a_folder_may_be_a_link_that_leads_nowhere(tmp_path, read):
    """Else the settings of a module would vanish with its folder."""
    (tmp_path / "1_Pooling").symlink_to("gone")
    with refusal(WeightsError, where=str(tmp_path / "1_Pooling"), what=LINK):
        read(tmp_path / "1_Pooling" / "config.json")


@pytest.mark.parametrize("read", [read_object, read_optional_object, has_file, read_header])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, read):
    """The tests may run as a user who may read everything, so the system's answer is given here."""

    def refuse(path, *more):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "f").write_text("{}")
    monkeypatch.setattr(reading.os, "stat" if read is has_file else "open", refuse)
    with refusal(
        WeightsError, where=str(tmp_path / "f"), what="cannot be read (Permission denied)"
    ):
        read(tmp_path / "f")


def test_a_file_that_becomes_a_pipe(tmp_path, monkeypatch):
    """Between the first look and the opening the name may be given to a pipe; opening it must not wait."""
    (tmp_path / "file").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    ask = os.stat
    answers = {tmp_path / "pipe": ask(tmp_path / "file")}
    monkeypatch.setattr(reading.os, "stat", lambda place: answers.get(place) or ask(place))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(OSError, match="it is a pipe"):
        open_regular(tmp_path / "pipe")
    monkeypatch.undo()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [100, 101])
def test_no_more_than_the_limit_is_read(tmp_path, size):
    (tmp_path / "f").write_bytes(b"x" * size)
    if size <= 100:
        assert read_bytes(tmp_path / "f", limit=100) == b"x" * size
        return
    with refusal(ConfigError, what="too large", expected="at most 100 bytes"):
        read_bytes(tmp_path / "f", limit=100)


@pytest.mark.parametrize("what", ["config", "header"])
def test_a_small_file_that_claims_to_be_huge_costs_nothing(tmp_path, what):
    """A sparse file has any size; it is refused by its size, before it is parsed."""
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.write(
            json.dumps({}).encode() if what == "config" else struct.pack("<Q", 90_000_000) + b"{"
        )
        file.truncate(10**9)
    with pytest.raises((ConfigError, WeightsError)) as caught:
        read_object(path) if what == "config" else read_header(path)
    expected = "at most 4194304 bytes" if what == "config" else "at most 16777216"
    assert caught.value.expected == expected


def test_hashing_never_waits(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with refusal(WeightsError, what="cannot be read (it is a pipe)"):
        hash_files(tmp_path)
