"""Files and folders are complete or absent, whatever ends the writing, and no temporary files remain."""

import errno
import importlib.util
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.messages import refusal

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


MISSING_FOLDERS = {
    "missing": ("gone/file", "gone", "no such folder", "Create it first."),
    "file-as-folder": ("file/new", "file", "is not a folder", "Name a folder."),
    "through-a-link": ("link", "gone", "no such folder", "Create it first."),
}


@pytest.mark.parametrize("place", MISSING_FOLDERS)
def test_a_missing_folder_is_named(old, place):
    name, folder, what, remedy = MISSING_FOLDERS[place]
    if name == "link":
        (old.parent / name).symlink_to(old.parent / "gone/file")
    with refusal(InputError, where=str(old.parent / folder), what=what, remedy=remedy):
        with replace_file(old.parent / name):
            pass
    assert "file" in os.listdir(old.parent)


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


WRITER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from lastword.weights.files.atomic import replace_file, replace_folder
with ExitStack() as stack:
    for name in sys.argv[1:]:
        made = stack.enter_context((replace_folder if name.endswith("rows") else replace_file)(Path(name)))
        if isinstance(made, Path):
            (made / "inner").mkdir()
        else:
            made.write(b"new")
            made.flush()
    print("ready", flush=True)
    sys.stdin.readline()
"""
NAMES = ("out.npy", "out.npy.json", "plan.rows")


@contextmanager
def writing(folder: Path, *names: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has begun to write these outputs."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, *names],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def write_here(*names: str) -> None:
    for name in names:
        if name.endswith("rows"):
            with replace_folder(Path(name)):
                pass
        else:
            with replace_file(name):
                pass


def hidden() -> list[str]:
    return sorted(name for name in os.listdir() if name.startswith("."))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_a_killed_run_leaves_is_removed_by_the_next_one_to_the_same_output(here):
    with writing(here, *NAMES) as process:
        process.kill()
    assert (len(hidden()), sorted(os.listdir())) == (3, hidden())
    write_here("other.npy", "out", "npy.json")
    assert len(hidden()) == 3
    write_here("out.npy")
    assert len(hidden()) == 2
    write_here(*NAMES)
    assert hidden() == []


def test_what_another_run_is_writing_stays(here):
    with writing(here, *NAMES) as process:
        before = hidden()
        write_here(*NAMES[:2], "other.npy")
        with replace_folder(here / "plan.rows"):
            pass
        assert (len(before), hidden()) == (3, before)
        (here / "plan.rows").rmdir()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(timeout=60) == 0
    assert (here / "out.npy").read_bytes() == (here / "out.npy.json").read_bytes() == b"new"
    assert (here / "plan.rows/inner").is_dir()
    assert hidden() == []


@pytest.mark.parametrize("locks", ["none", "not here"])
def test_without_locks_everything_stays(here, monkeypatch, locks):
    with writing(here, *NAMES) as process:
        process.kill()
    before = hidden()
    if locks == "none":
        monkeypatch.setattr(atomic, "fcntl", None)
    else:
        monkeypatch.setattr(atomic.fcntl, "flock", fail)
    write_here(*NAMES)
    assert (hidden(), len(before)) == (before, 3)
    assert (here / "plan.rows").is_dir()


def test_a_system_without_fcntl(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    spec = importlib.util.spec_from_file_location("atomic_elsewhere", atomic.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.fcntl is None
    module.lock(0)
    with module.replace_file("out") as file, module.replace_folder(here / "rows") as folder:
        file.write(b"new")
        fill(folder)
    assert sorted(os.listdir()) == ["out", "rows"]


def test_a_new_file_that_a_sweep_takes_is_made_again(here, monkeypatch):
    """Between the creation and the lock, another run may take the file for a leftover."""
    swept = []
    flock = atomic.fcntl.flock

    def late(descriptor: int, how: int) -> None:
        if len(swept) < 3:
            swept.append(hidden())
            if len(swept) == 1:
                raise BlockingIOError
            for name in hidden():
                (Path(name).rmdir if Path(name).is_dir() else Path(name).unlink)()
        flock(descriptor, how)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    write_here("out.npy")
    assert (len(swept), hidden(), os.listdir()) == (3, [], ["out.npy"])
    swept.clear()
    write_here("plan.rows")
    assert (len(swept), hidden()) == (3, [])


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_only_leftovers_are_removed(here, kind):
    (here / "mine").mkdir()
    (here / "mine/file").write_text("mine")
    name = here / f"{atomic._prefix('out.npy')}0.part"
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "link":
        name.symlink_to("mine")
    else:
        name.mkdir()
        (name / "link").symlink_to("../mine")
    write_here("out.npy")
    assert os.path.lexists(name) is (kind != "folder")
    assert (here / "mine/file").read_text() == "mine"


def test_runs_at_once_lose_nothing(here):
    """Runs in parallel to two outputs: each completes, and the sweeps of the others never take its file."""
    code = (
        "import sys\n"
        "from lastword.weights.files.atomic import replace_file\n"
        "for i in range(100):\n"
        "    with replace_file(sys.argv[1]) as file:\n"
        "        file.write(b'new')\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, name], stderr=subprocess.PIPE, text=True)
        for name in ("a", "a", "b")
    ]
    for run in runs:
        assert run.communicate(timeout=60)[1] == ""
    assert sorted(os.listdir()) == ["a", "b"]
