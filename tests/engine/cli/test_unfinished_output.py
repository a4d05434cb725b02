"""An output that cannot be completed: one line, the old file kept, no other file left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.project import ROOT

FAKE = ROOT / "tests/helpers/fake_embedder.py"
OLD = b"old output"


def _check(result, *expected, status=2):
    assert (result.status, result.err.count("\n")) == (status, 1), result.err
    assert all(part in result.err for part in expected), result.err


def test_ctrl_c_keeps_the_old_output(cli):
    Path("a.txt").write_text("a\nb\nc\nCTRL-C\n")
    Path("out.npy").write_bytes(OLD)
    before = sorted(os.listdir())
    _check(cli("embed", "a.txt", "-o", "out.npy"), "stopped", status=130)
    assert Path("out.npy").read_bytes() == OLD
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("name", ["o.jsonl", "o.safetensors", "o.npy"])
def test_disk_full_while_writing(cli, monkeypatch, name):
    """The disk becomes full at the first, a middle or the last write to the new file."""
    import errno

    from lastword.weights.files import atomic

    class Full:
        def __init__(self, stream, room):
            self._stream, self._room = stream, room

        def write(self, data):
            self._room -= len(data)
            if self._room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._stream.write(data)

        def __getattr__(self, attribute):
            return getattr(self._stream, attribute)

    Path("a.txt").write_text("\n".join("abcdefgh"))
    Path(name).write_bytes(OLD)
    before = sorted(os.listdir())
    for room in (0, 150, 300):
        create = atomic._create
        with monkeypatch.context() as patch:
            patch.setattr(
                atomic, "_create", lambda *a, room=room, create=create: Full(create(*a), room)
            )
            _check(cli("embed", "a.txt", "-o", name), name, "No space left on device")
        assert Path(name).read_bytes() == OLD
        assert sorted(os.listdir()) == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_at_the_last_step(cli, monkeypatch, step):
    def fail(*arguments):
        raise OSError(5, "Input/output error")

    Path("a.txt").write_text("x")
    Path("o").write_bytes(OLD)
    monkeypatch.setattr(os, step, fail)
    _check(cli("embed", "a.txt", "-o", "o"), "o: cannot be written (Input/output error)")
    assert Path("o").read_bytes() == OLD
    assert sorted(os.listdir()) == ["a.txt", "o"]


def test_what_a_killed_run_left_is_removed_by_the_next_run_to_the_same_output(cli, tmp_path):
    outputs = ("-o", "out.npy", "--save-ranges", "ranges")
    command = [sys.executable, str(FAKE), "embed", "--quiet", *outputs]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE) as process:
        while len(parts := sorted(tmp_path.glob(".*.part"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    cli("--version")  # enters the folder
    Path("a.txt").write_text("abc\nb\ncde")
    assert cli("embed", "a.txt", "-o", "other.npy").status == 0
    assert sorted(tmp_path.glob(".*")) == parts
    assert cli("embed", "a.txt", *outputs).status == 0
    assert sorted(tmp_path.glob(".*")) == []
