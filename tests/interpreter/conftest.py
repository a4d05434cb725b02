"""Run the Triton kernels on a CPU, in one of two ways, which must be selected before Triton is imported.

TRITON_INTERPRET=1 python -m pytest tests/interpreter    Triton's interpreter, repaired in bfloat16; small blocks
PROVE_KERNELS=1 python -m pytest tests/interpreter       ttsem, which executes the IR that Triton compiles for sm_90:
                                                         every byte read and written is checked, and races are found

`make prove-kernels` installs ttsem and does the second.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.kernels import bf16_interpreter
from helpers.kernels.operations import fill_with_nan

from lastword.kernels import arguments, ops

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PROVED = os.environ.get("PROVE_KERNELS") == "1"
# Their tests are about values only, about host code, or about descriptors, for which ttsem needs Triton 3.8.
INTERPRETER_ONLY = (
    "test_descriptor_attention.py",
    "test_model.py",
    "test_mutants.py",
    "test_padded_batches.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        if not (INTERPRETED or PROVED):
            reason = "interpreted kernels: TRITON_INTERPRET=1 python -m pytest tests/interpreter"
        elif PROVED and item.path.name in INTERPRETER_ONLY:
            reason = "only in Triton's interpreter"
        elif not PROVED and item.path.name == "test_proof.py":
            reason = "only with ttsem: make prove-kernels"
        else:
            continue
        item.add_marker(pytest.mark.skip(reason))


@pytest.fixture(autouse=True)
def kernels_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill output memory with NaN before each launch, so that an unwritten element is detected, and run the kernels.

    lastword refuses bfloat16 in Triton's interpreter; here the interpreter is repaired and may have it.
    """
    if PROVED:
        from ttsem.sanitize import session

        with session(cc=90):  # fills memory with NaN too
            yield
        return
    fill_with_nan(monkeypatch)
    bf16_interpreter.install(monkeypatch)
    monkeypatch.setattr(ops, "on_triton", lambda where, x: arguments.launches_triton(x.device))
    yield
