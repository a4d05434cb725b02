"""These tests need a CUDA or ROCm device: python -m pytest -m gpu"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("ignore:device. the GPU kernels"))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip("no GPU: python -m pytest -m gpu on one"))


@pytest.fixture(autouse=True)
def free_memory() -> None:
    """Give back what the test before has cached: some tests fill the device."""
    torch.cuda.empty_cache()
