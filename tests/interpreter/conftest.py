"""Run the Triton kernels on a CPU in Triton's interpreter, which must be selected before Triton is imported.

TRITON_INTERPRET=1 python -m pytest tests/interpreter
"""

import os
from pathlib import Path

import pytest
from helpers.operations import fill_with_nan

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not INTERPRETED:
        reason = "interpreted kernels: TRITON_INTERPRET=1 python -m pytest tests/interpreter"
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason))


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill output memory with NaN before each launch, so that an unwritten element is detected."""
    fill_with_nan(monkeypatch)
