"""Clients whose pins do not fit ours, or that are not Python: each in an environment that the test makes.

What is installed stays in `.clients` of the checkout (`make clean` removes it) until the pins change.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.serving.servers import running
from helpers.small_models import make_reranker

from lastword import Embedder, Reranker

HERE = Path(__file__).resolve().parent / "clients"
ENVIRONMENTS = HERE.parents[3] / ".clients"
MODEL = "lastword-builtin-embedding"
QUERY = "the cat"
TEXTS = ["how do plants make sugar?", "", "zwölf Boxkämpfer 🥊"]
EMBEDDERS = ("langchain_huggingface", "llama_index_embeddings", "litellm_embedding", "haystack_openai",
             "haystack_huggingface")  # fmt: skip
RERANKERS = ("llama_index_rerank", "litellm_rerank", "litellm_rerank_jina", "litellm_rerank_vllm",
             "litellm_rerank_huggingface", "haystack_rank")  # fmt: skip
# No client asks anybody but our server.
ENV = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
       "HAYSTACK_TELEMETRY_ENABLED": "False"}  # fmt: skip


def install(name, pins, commands):
    """Return the folder of an environment; skip if it is not there and cannot be installed."""
    folder = ENVIRONMENTS / name
    wanted = hashlib.sha256(b"".join((HERE / pin).read_bytes() for pin in pins)).hexdigest()
    stamp = folder / "pins"
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for pin in pins:
        shutil.copy(HERE / pin, folder)
    for command in commands(folder):
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:  # a network that drops packets
            pytest.skip(f"{name} cannot be installed within ten minutes")
        if done.returncode:
            pytest.skip(f"{name} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    stamp.write_text(wanted)
    return folder


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory):
    return make_reranker(tmp_path_factory.mktemp("clients") / "small-reranker")


@pytest.fixture(scope="module")
def both(reranker_folder):
    def load():
        return Reranker(reranker_folder, device="cpu")

    with running(lambda: Embedder(device="cpu"), load_reranker=load) as found:
        yield found


@pytest.fixture(scope="module")
def answers(both, tmp_path_factory):
    """What each Python client gives; they share a process, since importing them takes most of the time."""

    def commands(folder):
        pip = [
            folder / "env/bin/python",
            "-m",
            "pip",
            "install",
            "-q",
            "--only-binary",
            ":all:",
            "--retries",
            "1",
        ]
        return (
            [sys.executable, "-m", "venv", folder / "env"],
            [*pip, "-r", "requirements.txt"],
        )

    folder = install("python", ["requirements.txt"], commands)
    out = tmp_path_factory.mktemp("answers") / "answers.json"
    asked = {"texts": TEXTS, "query": QUERY, "model": MODEL, "reranker": "small-reranker"}
    done = subprocess.run(
        [folder / "env/bin/python", HERE / "ask.py", both.url, *EMBEDDERS, *RERANKERS],
        input=json.dumps({**asked, "out": str(out)}),
        env=ENV, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("client", EMBEDDERS)
def test_vectors(answers, model, client):
    assert not isinstance(answers[client], str), answers[client]
    np.testing.assert_allclose(answers[client], model.encode(TEXTS).numpy(), atol=1e-5)


@pytest.mark.parametrize("client", RERANKERS)
def test_scores(answers, reranker_folder, client):
    assert not isinstance(answers[client], str), answers[client]
    expected = Reranker(reranker_folder, device="cpu").rank(QUERY, TEXTS)
    assert [place for place, _ in answers[client]] == [each["corpus_id"] for each in expected]
    scores = [score for _, score in answers[client]]
    np.testing.assert_allclose(scores, [each["score"] for each in expected], atol=1e-5)


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm")
def test_openai_for_node(both, model):
    """It decodes base64 even where it did not ask for it, so a server that ignores it gives nonsense."""
    pins = ["package.json", "package-lock.json", "ask.mjs"]
    npm = "npm ci --no-audit --no-fund --ignore-scripts --fetch-retries 1 --fetch-timeout 30000"
    folder = install("node", pins, lambda _: [npm.split()])
    done = subprocess.run(
        ["node", "ask.mjs", both.url], cwd=folder, env=ENV,
        input=json.dumps({"texts": TEXTS, "model": MODEL}), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    np.testing.assert_allclose(answer["vectors"], model.encode(TEXTS).numpy(), atol=1e-5)
    np.testing.assert_allclose(
        answer["short"], model.encode(TEXTS, truncate_dim=8).numpy(), atol=1e-5
    )
    assert answer["refused"] == 404
