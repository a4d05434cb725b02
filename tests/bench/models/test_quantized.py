"""The quantised model compared with the plain one: same weights, lasting outliers, consistent figures."""

import json
from pathlib import Path

import pytest
import torch

from lastword import DeviceError
from lastword.bench.models import quantized
from lastword.bench.models.random_model import random_embedder
from lastword.bench.models.stages import batches_of, model_of
from lastword.bench.models.workloads import Workload, texts_of
from lastword.cli.main import main

CPU = torch.device("cpu")


def embedder(folder: Path, quantize: str | None = None):
    return random_embedder(folder, "tiny", 2, CPU, torch.float32, quantize=quantize, outliers=8)


def test_outliers_last_and_the_quantisation_error_stays_small(tmp_path: Path) -> None:
    plain, ours = embedder(tmp_path / "a"), embedder(tmp_path / "b", "int8")
    seen = []
    (batch,) = batches_of(plain, texts_of(4, 20))
    model_of(plain).forward(batch, lambda _, states: seen.append(states))
    size = seen[-1].square().mean(0).sqrt()
    # All rows are of the end token, in which an outlier channel may be small by chance.
    assert size[:: len(size) // 8].median() > 3 * size.median()
    cosine = (plain.encode(texts_of(50, 20)) * ours.encode(texts_of(50, 20))).sum(1)
    assert 0.999 <= cosine.mean() < 1 - 1e-7
    assert model_of(plain).embedding.equal(model_of(ours).embedding)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_figures_add_up(one_by_one: bool, tmp_path: Path, monkeypatch) -> None:
    plain, ours = embedder(tmp_path / "a"), embedder(tmp_path / "b", "int8")
    clock = iter([0, 4, 10, 11, 20, 23, 30, 38, 40, 46, 50, 52])  # plain 4, 8, 6; ours 1, 3, 2
    monkeypatch.setattr(quantized, "perf_counter", lambda: next(clock))
    load = Workload("q", "queries", texts_of(5, 9), "query", one_by_one)
    row = quantized.compare(plain, ours, load, rounds=3)
    assert (row["plain_s"], row["quantized_s"], row["speedup"]) == (6, 2, 3)
    assert row["min_cosine"] <= row["mean_cosine"] < 1


def test_the_command(capfd, tmp_path: Path) -> None:
    out = tmp_path / "int8.jsonl"
    words = ["--model", "tiny", "--device", "cpu", "--layers", "1", "--rounds", "1", "--quick"]
    assert main(["bench", "model", "--quantize", "int8", *words, "--json", str(out)]) == 0
    head, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert (head["model"], head["quantize"], head["cuda_graphs"]) == ("tiny", "int8", True)
    assert [row["texts"] for row in rows] == [64, 200, 16]
    assert all(row["mean_cosine"] > 0.995 and row["speedup"] > 0 for row in rows)
    assert sum(" x" in line or "x " in line for line in capfd.readouterr().out.splitlines()) >= 3


def test_refused_before_models_are_made(capfd) -> None:
    words = ["bench", "model", "--quantize", "int8", "--device", "cpu", "--dtype", "bfloat16"]
    assert main(words) == 2
    assert "--quantize: int8 needs dtype float32" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quantize", "int8", "--lengths", "9"], "--lengths: does not go with --quantize"),
        (["--quantize", "int8", "--tokens", "9"], "--tokens: does not go with --quantize"),
        (["--quick"], "--quick: goes with --quantize"),
    ],
)
def test_options_that_would_have_no_effect(words: list[str], message: str, capfd) -> None:
    assert main(["bench", "model", "--model", "tiny", "--device", "cpu", *words]) == 2
    assert message in capfd.readouterr().err


def test_both_models_launch_as_requested(monkeypatch) -> None:
    asked = []

    def open_model(*_, quantize, cuda_graphs, **__):
        asked.append((quantize, cuda_graphs))
        if len(asked) == 2:
            raise DeviceError("device", "enough")

    monkeypatch.setattr(quantized, "random_embedder", open_model)
    words = ["--quantize", "int8", "--device", "cpu", "--no-cuda-graphs"]
    assert main(["bench", "model", *words]) == 2
    assert asked == [(None, False), ("int8", False)]
