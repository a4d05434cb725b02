"""One server with the built-in model for all tests that need no settings of their own."""

import pytest
from helpers.serving.servers import running

from lastword import Embedder
from lastword.serve.settings import Settings


@pytest.fixture(scope="session")
def model():
    return Embedder(device="cpu")


@pytest.fixture(scope="package")
def server():
    with running(lambda: Embedder(device="cpu"), Settings(port=0)) as found:
        yield found
