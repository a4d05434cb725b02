"""One server with the built-in model for each file of tests; its threads end with the file, as other tests expect."""

import pytest
from helpers.serving.servers import running

from lastword import Embedder
from lastword.serve.settings import Settings


@pytest.fixture(scope="session")
def model():
    return Embedder(device="cpu")


@pytest.fixture(scope="module")
def server():
    with running(lambda: Embedder(device="cpu"), Settings(port=0)) as found:
        yield found
