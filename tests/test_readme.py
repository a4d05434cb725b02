"""Every Python and shell example of the READMEs runs, in order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.small_models import make_reranker

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a print of an example prints, in a comment beside or below it.
SHOWN = re.compile(r"^print\(.*\)(?:  |\n)# (.+)$", re.MULTILINE)
BLOCKS = BLOCK.findall(README.read_text(encoding="utf-8"))
MOVING = README.parent / "engine/interop/README.md"


def of(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """What the READMEs assume: a model in `model`, notes in `examples/notes.txt`, and the reranker that they name.

    A small random one in a folder of that name stands for it.
    """
    make_reranker(tmp_path / "Qwen" / "Qwen3-Reranker-0.6B")
    (tmp_path / "model").symlink_to(tiny_checkpoint)
    (tmp_path / "examples").symlink_to(README.parent / "examples")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_length() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_block_is_known() -> None:
    assert {kind for kind, _ in BLOCKS} <= {"python", "sh", "console", "text"}
    assert of("python")
    assert of("sh")


def test_python(folder: Path) -> None:
    for number, block in enumerate(of("python"), 1):
        script = folder / f"example{number}.py"
        script.write_text(block, encoding="utf-8")
        out = " ".join(run([sys.executable, script.name], folder).split())
        shown = SHOWN.findall(block)
        assert out
        assert [each for each in shown if each not in out] == [], out
    assert sum(len(SHOWN.findall(block)) for block in of("python")) >= 2


def test_each_move_is_four_lines_that_run(folder: Path) -> None:
    moves = [text for _, text in BLOCK.findall(MOVING.read_text(encoding="utf-8"))]
    lines = [[line for line in text.splitlines() if line] for text in moves]
    assert [len(each) for each in lines[:4]] == [4] * 4
    script = folder / "moves.py"
    script.write_text("\n".join(moves), encoding="utf-8")
    assert run([sys.executable, script.name], folder).count("\n") >= 4


def test_shell(folder: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", "\n".join(of("sh"))], folder)
    assert (folder / "notes.safetensors").stat().st_size > 0


def test_the_drawing_is_what_its_script_draws(tmp_path: Path) -> None:
    script = README.parent / "examples/draw_forest.py"
    drawn = run([sys.executable, str(script)], tmp_path)
    assert drawn == script.with_name("forest.svg").read_text(encoding="utf-8")
    assert "examples/forest.svg" in README.read_text(encoding="utf-8")
