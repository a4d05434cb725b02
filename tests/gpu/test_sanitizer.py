"""Memory errors in the kernels, as compute-sanitizer sees them on a few small cases."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_small_suite_is_clean(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on PATH; it comes with the CUDA toolkit")
    suite = Path(__file__).with_name("test_kernels.py")
    small = "0.6B and dtype0 and (inside or levels or test_row_kernels)"
    ours: list[str] = []
    if tool == "initcheck":  # of attention, since libraries' matmuls may read more than they use
        suite, small = suite.with_name("test_graphs.py"), "padding_holds_numbers and bfloat16"
        ours = ["--kernel-name", "kernel_substring=attention_kernel"]
    done = subprocess.run(
        [sanitizer, "--tool", tool, *ours, "--error-exitcode", "9", "--report-api-errors", "no", sys.executable, "-m",
         "pytest", "-q", suite, "-k", small],
        capture_output=True, text=True, timeout=400, cwd=suite.parents[2],
        env=os.environ | {
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # each tensor's end is then an allocation's
            "LASTWORD_INITCHECK": "1",
        },
    )  # fmt: skip
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not support this device")
    assert done.returncode == 0, done.stdout[-3000:]
