"""New model folders are written atomically, and interrupted work is resumed where it stopped."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.project import ROOT

from lastword.bench.checkpoint import make_checkpoint
from lastword.errors import InputError
from lastword.weights.files.header import read_header
from lastword.weights.files.shards import read_tensors
from lastword.weights.files.writer import TensorSpec
from lastword.weights.merging.job import write_model

SCRIPT = ROOT / "tests/weights/merging/killed_merge.py"


class FakeJob:
    """A job with four tensors of 400 bytes; computing the tensor `fail` raises."""

    def __init__(
        self, fail: str | None = None, error: BaseException | None = None, value=1.0
    ) -> None:
        self.specs = dict.fromkeys("abcd", TensorSpec(torch.float32, (10, 10)))
        self.identity = {"value": value}
        self.made: Counter[str] = Counter()
        self.fail, self.error, self.value = fail, error or RuntimeError("no"), value

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        if name == self.fail:
            raise self.error
        self.made[name] += 1
        yield torch.full((60,), self.value)
        yield torch.full((40,), self.value)

    def facts(self, name: str) -> dict:
        return {"tensor": name}

    def finish(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")


NAMES = [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]


def test_one_file(tmp_path):
    seen = []
    facts = write_model(FakeJob(), tmp_path / "new", progress=seen.append)
    assert sorted(os.listdir(tmp_path / "new")) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["new"]
    assert facts == [{"tensor": name} for name in "abcd"]
    assert sum(seen) == 1600


@pytest.mark.parametrize(
    ("size", "sizes"), [(1600, [4]), (1599, [3, 1]), (800, [2, 2]), (799, [1] * 4), (1, [1] * 4)]
)
def test_shards_and_index(tmp_path, size, sizes):
    write_model(FakeJob(), tmp_path / "new", shard_bytes=size)
    files = sorted((tmp_path / "new").glob("*.safetensors"))
    assert [len(read_header(file)) for file in files] == sizes
    assert list(read_tensors(tmp_path / "new")) == list(
        "abcd"
    )  # checks the index against the shards
    if len(sizes) > 1:
        index = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
        assert index["metadata"] == {"total_size": 1600}


def interrupt(tmp_path, error, fail="c") -> list[str]:
    said: list[str] = []
    with pytest.raises(type(error)):
        write_model(FakeJob(fail, error), tmp_path / "new", shard_bytes=400, notice=said.append)
    assert not (tmp_path / "new").exists()
    return said


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no"), MemoryError()])
def test_an_interrupted_run_is_taken_up(tmp_path, error):
    said = interrupt(tmp_path, error)
    assert said == [f"{tmp_path}/.new.partial: keeps 2 of 4 files; run again to continue"]
    job, seen = FakeJob(), []
    facts = write_model(
        job, tmp_path / "new", shard_bytes=400, progress=seen.append, notice=said.append
    )
    assert said[1] == f"{tmp_path}/.new.partial: resumes an unfinished run, 2 of 4 files"
    assert job.made == {"c": 1, "d": 1}
    assert facts == [{"tensor": name} for name in "abcd"]
    assert sum(seen) == 1600
    assert os.listdir(tmp_path) == ["new"]


def test_another_job_starts_anew(tmp_path):
    interrupt(tmp_path, KeyboardInterrupt())
    job, said = FakeJob(value=2.0), []
    write_model(job, tmp_path / "new", shard_bytes=400, notice=said.append)
    assert job.made == dict.fromkeys("abcd", 1)
    assert said == [
        f"{tmp_path}/.new.partial: contains an unfinished run of a different job; starts again"
    ]


@pytest.mark.parametrize("damage", ["truncated", "gone", "no-state", "bad-state"])
def test_damaged_remains_are_made_again(tmp_path, damage):
    interrupt(tmp_path, KeyboardInterrupt())
    partial = tmp_path / ".new.partial"
    if damage == "truncated":
        os.truncate(partial / "model" / NAMES[0], 50)
    elif damage == "gone":
        (partial / "model" / NAMES[0]).unlink()
    elif damage == "no-state":
        (partial / "job.json").unlink()
    else:
        (partial / "job.json").write_text("{")
    job = FakeJob()
    write_model(job, tmp_path / "new", shard_bytes=400)
    assert job.made["a"] == 1
    assert list(read_tensors(tmp_path / "new")) == list("abcd")


def test_nothing_is_left_where_no_file_was_finished(tmp_path):
    assert interrupt(tmp_path, RuntimeError("no"), fail="a") == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_what_is_there_is_left_alone(tmp_path, there):
    new = tmp_path / "new"
    if there == "file":
        new.write_text("mine")
    elif there == "folder":
        new.mkdir()
        (new / "mine").write_text("mine")
    else:
        new.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError) as caught:
        write_model(FakeJob(), new)
    expected = InputError(
        str(new), "exists already", expected="a new folder", remedy="Name another one."
    )
    assert vars(caught.value) == vars(expected)
    assert os.listdir(tmp_path) == ["new"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "new").mkdir()
    write_model(FakeJob(), tmp_path / "new")
    assert (tmp_path / "new/config.json").is_file()


def test_a_link_to_an_empty_folder_is_filled_and_stays_a_link(tmp_path):
    (tmp_path / "disk/real").mkdir(parents=True)
    (tmp_path / "new").symlink_to("disk/real")
    write_model(FakeJob(), tmp_path / "new")
    assert (tmp_path / "new").is_symlink()
    assert sorted(os.listdir(tmp_path / "disk/real")) == ["config.json", "model.safetensors"]
    assert (sorted(os.listdir(tmp_path)), os.listdir(tmp_path / "disk")) == (
        ["disk", "new"],
        ["real"],
    )


@pytest.mark.parametrize("name", [".", "", "../here"])
@pytest.mark.parametrize("kind", ["current", "mount"])
def test_a_folder_that_cannot_be_renamed_over_is_refused_first(tmp_path, monkeypatch, name, kind):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    job, place = FakeJob(), str(Path(name))
    expected = InputError(
        place, "is the current folder", expected="a new one", remedy="Name another one."
    )
    if kind == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path / "here"))
        expected = InputError(
            place, "is a mount point", expected="a new folder", remedy="Name a folder inside it."
        )
    with pytest.raises(InputError) as caught:
        write_model(job, Path(name))
    assert vars(caught.value) == vars(expected)
    assert (job.made, os.listdir(tmp_path), os.listdir()) == ({}, ["here"], [])


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError) as caught:
        write_model(FakeJob(), tmp_path / "gone/new")
    error = caught.value
    assert error.where == str(tmp_path / "gone")
    assert (error.what, error.remedy) == ("no such folder", "Create it first.")


def test_a_disk_too_small_is_known_beforehand(tmp_path, monkeypatch):
    small = shutil._ntuple_diskusage(2000, 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    with pytest.raises(InputError) as caught:
        write_model(FakeJob(), tmp_path / "new")
    error = caught.value
    assert error.where == str(tmp_path / ".new.partial")
    assert error.what == "not enough free space on the disk"
    assert (error.got, error.expected) == ("1,000 bytes free", "1,600")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(InputError) as caught:
        write_model(FakeJob(), tmp_path / "new")
    assert caught.value.where == str(tmp_path / "new")
    assert caught.value.what == "cannot be written (No space left on device)"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_state_that_cannot_be_written_leaves_no_half_of_it(tmp_path, monkeypatch):
    interrupt(tmp_path, KeyboardInterrupt())
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if "partial/.lastword" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError) as caught:
        write_model(FakeJob(), tmp_path / "new", shard_bytes=400)
    assert "No space left on device" in caught.value.what
    kept = {f"{name}.facts" for name in NAMES[:2]}
    assert set(os.listdir(tmp_path / ".new.partial")) == {"job.json", "lock", "model", *kept}


def test_two_runs_at_once(tmp_path):
    partial = tmp_path / ".new.partial"
    partial.mkdir()
    with (partial / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError) as caught:
            write_model(FakeJob(), tmp_path / "new")
        assert caught.value.where == str(partial)
        assert caught.value.what == "another run is writing this model"
        assert caught.value.remedy == "Wait for that run or stop it."
        assert os.listdir(partial) == ["lock"]
    write_model(FakeJob(), tmp_path / "new")
    assert os.listdir(tmp_path) == ["new"]


def foreign(partial: Path, kind: str) -> None:
    """Put something in the place of the unfinished work that no run has left."""
    other = partial.with_name("other")
    other.mkdir()
    (other / "mine").write_text("mine")
    if kind == "file":
        partial.write_text("mine")
        return
    if kind == "link":
        partial.symlink_to("other")
        return
    partial.mkdir()
    (partial / "mine").write_text("mine")
    if kind == "lock-pipe":
        os.mkfifo(partial / "lock")
    elif kind == "lock-link":
        (partial / "lock").symlink_to("../other/mine")
    elif kind == "lock-folder":
        (partial / "lock").mkdir()


@pytest.mark.parametrize(
    "kind", ["file", "link", "folder", "lock-pipe", "lock-link", "lock-folder"]
)
def test_only_the_remains_of_a_run_are_emptied(tmp_path, kind):
    partial = tmp_path / ".new.partial"
    foreign(partial, kind)
    with pytest.raises(InputError) as caught:
        write_model(FakeJob(), tmp_path / "new")
    error = caught.value
    assert error.where == str(partial)
    assert error.what == "exists, but is not the unfinished work of an earlier run"
    assert error.remedy == "Remove it, or name another output."
    assert (tmp_path / "other/mine").read_text() == "mine"
    if kind != "file":
        assert (partial / "mine").read_text() == "mine"


def test_a_run_killed_at_its_first_step(tmp_path):
    (tmp_path / ".new.partial").mkdir()
    write_model(FakeJob(), tmp_path / "new")
    assert os.listdir(tmp_path) == ["new"]


def test_links_among_the_remains_are_not_followed(tmp_path):
    interrupt(tmp_path, KeyboardInterrupt())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine").write_text("mine")
    model = tmp_path / ".new.partial/model"
    shutil.rmtree(model)
    model.symlink_to("../other")
    write_model(FakeJob(), tmp_path / "new", shard_bytes=400)
    assert (tmp_path / "other/mine").read_text() == "mine"
    assert list(read_tensors(tmp_path / "new")) == list("abcd")
    assert not (tmp_path / "new").is_symlink()


@pytest.mark.parametrize("facts", ["{}", "[]", '{"facts": {}}', '{"facts": []}', "{"])
def test_damaged_facts_are_made_again(tmp_path, facts):
    interrupt(tmp_path, KeyboardInterrupt())
    (tmp_path / ".new.partial" / f"{NAMES[0]}.facts").write_text(facts)
    job = FakeJob()
    made = write_model(job, tmp_path / "new", shard_bytes=400)
    assert job.made == {"a": 1, "c": 1, "d": 1}
    assert made == [{"tensor": name} for name in "abcd"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_merges_leave_nothing_that_loads_and_are_taken_up(tmp_path, kills):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    models = [
        make_checkpoint(tmp_path / f"m{i}", seed=i, num_key_value_heads=1, **sizes) for i in (1, 2)
    ]
    listed = "".join(f"- {{model: {folder}, parameters: {{weight: 1}}}}\n" for folder in models)
    config = tmp_path / "merge.yaml"
    config.write_text(f"merge_method: multislerp\nmodels:\n{listed}")
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, str(SCRIPT), str(config), str(work), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) == kills
    for run in runs:
        expected = {
            "signal": 9, "whole": True, "unloadable": True, "finished": 0, "same": True, "left": [],
        }  # fmt: skip
        # a run killed after the last rename leaves only its state next to the complete model
        run["left"] = (
            [] if run["left"] == [".out.partial"] and run["step"] == run["of"] else run["left"]
        )
        assert {key: run[key] for key in expected} == expected, run
        assert run["again"] <= 1, run  # the file whose facts were not yet written
    assert any(run["kept"] > 1 for run in runs)
