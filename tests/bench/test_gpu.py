"""`bench/gpu.sh`: two stages run at a tiny size, and lastword accepts every command of every stage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lastword.bench.kernels.baselines import CHANGES
from lastword.cli.main import _parse_arguments

SCRIPT = Path(__file__).resolve().parents[2] / "bench/gpu.sh"
STAGES = ("first", "prove", "kernels", "model", "peers")
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(
    BASH is None or shutil.which("timeout") is None, reason="needs bash and timeout"
)

RECORD = """#!/bin/sh
printf '%s\\n' "$*" >> "$0.calls"
case "$1" in -c) echo "$LASTWORD_AT" ;; *) echo "{}" ;; esac
"""


def stage(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, str(SCRIPT), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_kernels_at_a_tiny_size(tmp_path: Path) -> None:
    done = stage("kernels", str(tmp_path / "out"), "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "kernels.log",
        "kernels.jsonl",
        "roofline.svg",
        "descriptor.jsonl",
    }
    assert (tmp_path / "out/kernels.log").read_text() == done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out/kernels.jsonl").read_text().splitlines()]
    assert len(rows) > 10
    assert all(row["right"] for row in rows[1:])


def test_model_at_a_tiny_size(tmp_path: Path) -> None:
    done = stage("model", str(tmp_path / "out"), "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    made = {file.name for file in (tmp_path / "out").iterdir()}
    assert made == {"model.log", "model-tiny.jsonl", "model-tiny.svg"}
    assert "tok/s" in (tmp_path / "out/model.log").read_text()


def record(tmp_path: Path, name: str, *dry: str, at: str) -> list[list[str]]:
    """Return the commands of a stage without running them."""
    python = tmp_path / f"python-{name}"
    python.write_text(RECORD)
    python.chmod(0o755)
    done = stage(name, str(tmp_path / "out"), *dry, PYTHON=str(python), LASTWORD_AT=at)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = Path(f"{python}.calls").read_text().splitlines()
    return [call.split() for call in calls if not call.startswith("-c")]


@pytest.mark.parametrize("dry", [(), ("--dry",)], ids=["real", "dry"])
@pytest.mark.parametrize("name", STAGES)
def test_every_command_exists(name: str, dry: tuple[str], tmp_path: Path) -> None:
    calls = record(tmp_path, name, *dry, at=str(SCRIPT.parents[1] / "engine/__init__.py"))
    assert calls
    for _, module, *words in calls:
        if module == "lastword.cli.main":
            assert _parse_arguments(words).benchmark in (
                ("kernels", "model") if name == "first" else (name,)
            )
        elif module == "pytest":
            assert words[:2] == ["-m", "gpu"]
            named = [word.removeprefix("--ignore=") for word in words if "tests/gpu" in word]
            assert named
            assert all((SCRIPT.parents[1] / path).exists() for path in named)
        else:
            assert module == "lastword.bench.checkpoint"
            assert dry
    if name == "first" and not dry:
        (forms,) = [words for _, _, *words in calls if "before" in words]
        assert set(CHANGES) <= set(_parse_arguments(forms).beside)
        assert calls[0][-1] == "tests/gpu/test_kernels.py", "values come before times"
        assert "descriptor" in calls[-1], "what may hang comes last"
    if name == "model" and not dry:
        requested = [_parse_arguments(words) for _, _, *words in calls]
        assert [args.model for args in requested] == ["0.6B", "4B", "8B", "4B"]
        assert [args.quantize for args in requested] == [None, None, None, "fp8"]
        assert [args.tokens for args in requested] == [524288, 131072, 65536, None]
    assert len(list((tmp_path / "out").iterdir())) <= 8


@pytest.mark.parametrize(
    ("at", "dry", "installs"),
    [("", (), True), ("/elsewhere/lastword/__init__.py", (), True), ("", ("--dry",), True),
     ("/elsewhere/lastword/__init__.py", ("--dry",), False)],
)  # fmt: skip
def test_a_checkout_that_is_not_installed_is_installed(at, dry, installs, tmp_path: Path) -> None:
    first = record(tmp_path, "prove", *dry, at=at)[0]
    assert (first[:3] == ["-m", "pip", "install"]) == installs
    if installs:
        assert {"--no-deps", "--no-build-isolation", "-e"} <= set(first)


def test_a_failed_stage_goes_on_and_fails(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ncase $1 in -c) echo x;; *) echo torn; exit 3;; esac\n")
    python.chmod(0o755)
    done = stage("kernels", str(tmp_path / "out"), "--dry", PYTHON=str(python))
    assert done.returncode == 3
    assert (tmp_path / "out/kernels.log").read_text() == "torn\n" * 2


@pytest.mark.parametrize("words", [(), ("kernels",), ("all", "out"), ("kernels", "out", "--wet")])
def test_usage(words: tuple[str, ...], tmp_path: Path) -> None:
    done = stage(*[str(tmp_path / word) if word == "out" else word for word in words])
    assert done.returncode == 2
    assert "bench/gpu.sh prove OUT" in done.stderr
    assert not list(tmp_path.iterdir())
