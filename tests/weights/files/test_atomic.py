"""Files and folders are complete or absent, whatever ends the writing, and no temporary files remain."""

import errno
import os
import stat
from pathlib import Path

import pytest

from lastword.errors import InputError
from lastword.weights.files import atomic
from lastword.weights.files.atomic import replace_file, replace_folder

OLD = b"old"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


def fail(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_the_new_content_takes_the_old_ones_place_and_mode(old):
    old.chmod(0o640)
    with replace_file(old) as file:
        file.write(b"new")
        assert old.read_bytes() == OLD
    assert old.read_bytes() == b"new"
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert os.listdir(old.parent) == ["file"]


def test_a_link_stays_a_link(old):
    link = old.with_name("link")
    link.symlink_to("file")
    with replace_file(link) as file:
        file.write(b"new")
    assert (link.is_symlink(), old.read_bytes()) == (True, b"new")


def test_a_name_as_long_as_a_name_may_be(tmp_path):
    with replace_file(tmp_path / ("n" * 255)):
        pass
    assert os.listdir(tmp_path) == ["n" * 255]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no"), OSError(errno.EIO, "theirs")])  # fmt: skip
def test_an_error_inside_leaves_the_old_file_and_goes_on_as_it_is(old, error):
    with pytest.raises(type(error)) as raised, replace_file(old) as file:
        file.write(b"new")
        raise error
    assert raised.value is error
    assert (old.read_bytes(), os.listdir(old.parent)) == (OLD, ["file"])


@pytest.mark.parametrize("step", ["fsync", "fchmod", "replace"])
def test_a_step_that_fails_leaves_the_old_file(old, monkeypatch, step):
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(InputError) as caught, replace_file(old) as file:
        file.write(b"new")
    assert caught.value.where == str(old)
    assert caught.value.what == "cannot be written (Input/output error)"
    assert (old.read_bytes(), os.listdir(old.parent)) == (OLD, ["file"])


CLOSED, FILE_NAME = "cannot be written", "a file name"
BAD_PLACES = {
    "folder": ("", CLOSED, "a folder", FILE_NAME),
    "device": ("/dev/null", CLOSED, "a device or pipe", FILE_NAME),
    "no-folder": ("gone/file", f"{CLOSED} (its folder: No such file or directory)", None, None),
    "file-as-folder": ("file/new", f"{CLOSED} (Not a directory)", None, None),
}


@pytest.mark.parametrize("place", BAD_PLACES)
def test_places_that_cannot_be_written(old, place):
    name, what, got, expected = BAD_PLACES[place]
    with pytest.raises(InputError) as caught, replace_file(old.parent / name):
        pass
    error = caught.value
    assert (error.where, error.what) == (str(old.parent / name), what)
    assert (error.got, error.expected) == (got, expected)
    assert os.listdir(old.parent) == ["file"]


def fill(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner/rows").write_bytes(b"1\n")


def test_a_folder_is_on_the_disk_before_it_is_there(tmp_path, monkeypatch):
    synced = []
    real = atomic.sync

    def sync(path: Path) -> None:
        assert not (tmp_path / "new").exists()
        synced.append(path.name)
        real(path)

    monkeypatch.setattr(atomic, "sync", sync)
    with replace_folder(tmp_path / "new") as folder:
        fill(folder)
    assert sorted(synced) == sorted(["rows", "inner", folder.name])
    assert os.listdir(tmp_path) == ["new"]
    assert (tmp_path / "new/inner/rows").read_bytes() == b"1\n"


@pytest.mark.parametrize("step", [None, "fsync", "rename"])
def test_a_folder_that_is_not_finished_leaves_nothing(tmp_path, monkeypatch, step):
    if step is not None:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output error"), replace_folder(tmp_path / "new") as folder:  # fmt: skip
        fill(folder)
        if step is None:
            fail()
    assert os.listdir(tmp_path) == []
