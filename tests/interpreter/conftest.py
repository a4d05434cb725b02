"""Run the Triton kernels on a CPU, in one of three ways, which must be selected before Triton is imported.

TRITON_INTERPRET=1 python -m pytest tests/interpreter    Triton's interpreter, repaired in bfloat16; small blocks
PROVE_KERNELS=1 python -m pytest tests/interpreter       ttsem, which executes the IR that Triton compiles for sm_90:
                                                         every byte read and written is checked, and races are found
PROVE_KERNELS=pipelined python -m pytest tests/interpreter    attention only: ttsem executes the last IR for sm_90, with
                                                         asynchronous copies, wgmma and, with descriptors, warp groups

`make prove-kernels` installs ttsem and does the second, `make prove-pipelined` the third.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import triton
from helpers.kernels import bf16_interpreter
from helpers.kernels.operations import fill_with_nan

from lastword.kernels import arguments, ops

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PIPELINED = os.environ.get("PROVE_KERNELS") == "pipelined"
PROVED = PIPELINED or os.environ.get("PROVE_KERNELS") == "1"
# Their tests are about values only, or about host code.
INTERPRETER_ONLY = ("test_model.py", "test_mutants.py", "test_padded_batches.py")
# Of the kernel with descriptors ttsem runs these. It misreads the types of descriptors as earlier releases print them.
PROVED_DESCRIPTORS = ("test_lengths", "test_heads")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
    PROVED_DESCRIPTORS = ()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        if not (INTERPRETED or PROVED):
            reason = "interpreted kernels: TRITON_INTERPRET=1 python -m pytest tests/interpreter"
        elif PROVED and (item.path.name in INTERPRETER_ONLY or is_of_other_descriptors(item)):
            reason = "only in Triton's interpreter"
        elif PIPELINED and ("attention" not in item.nodeid or "dtype0" in item.nodeid):
            reason = "only attention in 16 bits is pipelined"
        elif not PROVED and item.path.name == "test_proof.py":
            reason = "only with ttsem: make prove-kernels"
        else:
            continue
        item.add_marker(pytest.mark.skip(reason))


def is_of_other_descriptors(item: pytest.Item) -> bool:
    named = getattr(item, "originalname", "")
    return item.path.name == "test_descriptor_attention.py" and named not in PROVED_DESCRIPTORS


@pytest.fixture(scope="session")
def executed() -> list[str]:
    """The IR of each launch of the test that ttsem has executed."""
    return []


@pytest.fixture(autouse=True)
def kernels_on_a_cpu(monkeypatch: pytest.MonkeyPatch, executed: list[str]) -> Iterator[None]:
    """Fill output memory with NaN before each launch, so that an unwritten element is detected, and run the kernels.

    lastword refuses bfloat16 in Triton's interpreter; here the interpreter is repaired and may have it.
    """
    if PROVED:
        from ttsem import harness
        from ttsem.sanitize import session

        executed.clear()
        compiled_to = harness.ir_for_launch

        def read_ir(launch: Any, stage: str, *args: Any, **named: Any) -> str:
            executed.append(compiled_to(launch, "ttgir" if PIPELINED else stage, *args, **named))
            return executed[-1]

        monkeypatch.setattr(harness, "ir_for_launch", read_ir)
        with session(cc=90):  # fills memory with NaN too
            yield
        return
    fill_with_nan(monkeypatch)
    bf16_interpreter.install(monkeypatch)
    monkeypatch.setattr(ops, "on_triton", lambda where, x: arguments.launches_triton(x.device))
    yield
