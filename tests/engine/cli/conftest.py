"""Fixtures that run the command line: with a fake model in this process or a new one, or with a real, tiny model."""

import importlib.util
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.messages import TEXTS
from helpers.project import ROOT

FAKE = ROOT / "tests/helpers/fake_embedder.py"


class Result(NamedTuple):
    status: int
    out: str
    err: str


def _fake_class():
    spec = importlib.util.spec_from_file_location("lastword_fake_embedder", FAKE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeEmbedder


@pytest.fixture
def fake_class(monkeypatch):
    """Make every command open this fake class instead of a model."""
    from lastword.cli import options

    fake = _fake_class()
    monkeypatch.setattr(options, "open_embedder", lambda args: fake())
    return fake


@pytest.fixture
def cli(fake_class, capfd, tmp_path, monkeypatch):
    """Call `main` in an empty folder with a fake model; stdin, when given, is bytes."""
    from lastword.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=None):
        if stdin is not None:
            Path("stdin.bytes").write_bytes(stdin)
            stream = opened.enter_context(open("stdin.bytes"))  # noqa: SIM115
            monkeypatch.setattr(sys, "stdin", stream)
        status = main([str(argument) for argument in arguments])
        return Result(status, *capfd.readouterr())

    with ExitStack() as opened:
        yield run


@pytest.fixture
def shell(tmp_path):
    """Run a line of bash in which $LASTWORD is the command line on the fake model."""

    def run(line, timeout=120):
        environment = {**os.environ, "LASTWORD": f"{sys.executable} {FAKE}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """Call `main` in a folder with texts.txt; return its status, stdout and stderr."""
    from lastword.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")

    def call(*arguments):
        return main([str(argument) for argument in arguments]), *capfd.readouterr()

    return call
