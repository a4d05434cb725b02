"""schemathesis makes requests from the OpenAPI document: never a 5xx, and every response is one that it describes."""

import json
import os
import subprocess
import sys

import pytest
from helpers.serving.servers import running
from helpers.small_models import make_reranker

from lastword import Embedder, Reranker
from lastword.serve.http.openapi import list_operations
from lastword.serve.settings import Settings

# The document cannot say everything that a body must fulfil: which prompts exist, or that token ids are refused.
NOT_CHECKED = "positive_data_acceptance"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = make_reranker(tmp_path_factory.mktemp("openapi") / "small-reranker")
    with running(
        lambda: Embedder(device="cpu"),
        Settings(port=0),
        load_reranker=lambda: Reranker(folder, device="cpu"),
    ) as found:
        yield found


def run_schemathesis(server, folder, *options):
    """Run schemathesis on a server, and return its report."""
    report = folder / "report.json"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
        *("--exclude-checks", NOT_CHECKED, "--generation-database", "none", "--no-color"),
        *("--request-timeout", "60", "--warnings", "off", "--report-json-path", str(report)),
        *options,
    ]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    return json.loads(report.read_text(encoding="utf-8"))


def test_the_document_has_every_route(both):
    document = both.get("/openapi.json").json()
    listed = {(method, path) for path, each in document["paths"].items() for method in each}
    assert listed == set(list_operations())


def test_a_sample_of_requests(both, tmp_path):
    options = ("--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--no-shrink")
    told = run_schemathesis(both, tmp_path, *options, "--seed", "1")
    assert told["operations"]["tested"] >= len(list_operations()) - 1  # not the document itself
    assert told["test_cases"]["generated"] >= 1_000


@pytest.mark.soak
def test_10_000_requests(both, tmp_path):
    options = ("--phases", "examples,coverage,fuzzing", "--max-examples", "800")
    told = run_schemathesis(both, tmp_path, *options)
    assert told["test_cases"]["generated"] >= 10_000
