"""These tests run the Triton kernels on a CPU through Triton's interpreter, which is chosen before Triton is imported.

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
    """Output memory holds NaN before each launch, so that an element nobody writes is seen."""
    fill_with_nan(monkeypatch)
