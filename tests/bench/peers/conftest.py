"""An interpreter whose vLLM is a stand-in with some calls of the real one."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def vllm_python(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a package `vllm` of the code that it is given, and returns an interpreter that finds it."""

    def make(code: str) -> Path:
        packages = tmp_path / "packages"
        (packages / "vllm-0.32.0.dist-info").mkdir(parents=True)
        (packages / "vllm.py").write_text(code)
        about = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n"
        (packages / "vllm-0.32.0.dist-info/METADATA").write_text(about)
        file = tmp_path / "python"
        file.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
        file.chmod(0o755)
        return file

    return make
