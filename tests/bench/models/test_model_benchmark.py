"""The benchmark of a whole model: random weights of the right shapes, one token per word, consistent figures."""

import json
from pathlib import Path

import pytest
import torch

from lastword import Embedder
from lastword.batching.forest import plan_forests
from lastword.bench.models import model_benchmark as model
from lastword.bench.models.random_model import RandomWeights, random_embedder
from lastword.bench.models.stages import batches_of, forward, groups_of, model_of
from lastword.bench.models.workloads import texts_of
from lastword.bench.shapes import SIZES
from lastword.cli.main import main
from lastword.encode_options import EncodeOptions
from lastword.weights import Checkpoint, read_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return random_embedder(tmp_path_factory.mktemp("random"), "tiny", 3, CPU, torch.float32)


def test_weights_have_the_shapes_of_a_checkpoint(embedder, tiny_checkpoint: Path) -> None:
    config = read_config(tiny_checkpoint)
    real = Checkpoint(tiny_checkpoint, config)
    made = RandomWeights(config, CPU, torch.bfloat16)
    assert made.embedding().shape == real.embedding().shape
    assert made.norm().shape == real.norm().shape
    ours, theirs = (each.layer(0, torch.bfloat16) for each in (made, real))
    for name in theirs.__slots__:
        tensor, other = getattr(ours, name), getattr(theirs, name)
        assert (tensor is None) == (other is None), name
        if tensor is not None:
            assert (tensor.shape, tensor.dtype) == (other.shape, torch.bfloat16), name
    assert not torch.equal(made.layer(1, torch.bfloat16).down, ours.down)
    assert made.num_parameters == real.num_parameters
    assert (made.dtypes, made.num_bytes) == (("BF16",), 2 * real.num_parameters)


def test_equal_fingerprints_are_equal_weights(tiny_checkpoint: Path) -> None:
    config = read_config(tiny_checkpoint)
    one, two = (RandomWeights(config, CPU, torch.float32) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.embedding(), two.embedding())
    other = RandomWeights(config, CPU, torch.float32, outliers=4)
    assert other.fingerprint != one.fingerprint
    assert other.fingerprint != RandomWeights(config, CPU, torch.bfloat16, outliers=4).fingerprint


def test_a_word_is_a_token(embedder) -> None:
    for length in (12, 128):
        texts = texts_of(5, length - 1)
        assert {len(ids) for ids in embedder.token_ids(texts)} == {length}
    assert texts_of(5, 11) == texts_of(5, 11)
    assert len(set(texts_of(50, 11))) == 50


def test_activations_stay_in_range(embedder) -> None:
    vectors = embedder.encode(texts_of(8, 31), show_progress_bar=False)
    assert vectors.shape == (8, SIZES["tiny"].hidden_size)
    assert (vectors @ vectors.T).fill_diagonal_(0).abs().max() < 0.9
    assert embedder.info.config.num_hidden_layers == 3


def test_the_forward_runs_the_batches_of_encode(embedder, monkeypatch) -> None:
    ran, true = [], model_of(embedder).forward

    def recorded(forest):
        ran.append(forest.ids.tolist())
        return true(forest)

    monkeypatch.setattr(model_of(embedder), "forward", recorded)
    texts = texts_of(9, 15)
    forward(embedder, batches_of(embedder, texts))
    planned = list(plan_forests(embedder.token_ids(texts), embedder.max_batch_tokens))
    assert ran == [each.ids.tolist() for each in planned]
    alone = ran.copy()
    ran.clear()
    embedder.encode(texts)
    assert ran == alone


@pytest.mark.parametrize("ahead", [False, True])
def test_groups_are_those_of_the_loop(embedder, ahead: bool, monkeypatch) -> None:
    """Also on a device where groups are prepared ahead and the first ones are small."""
    monkeypatch.setattr(embedder.loop.runner, "ahead", ahead)
    texts = texts_of(5000, 15)
    options = EncodeOptions("", embedder.max_length, embedder.info.vector_format())
    looped = [len(group.items) for group in embedder.loop.groups(texts, options)]
    assert [len(group) for group in groups_of(embedder, texts)] == looped
    assert len(looped) == (3 if ahead else 2)


def test_figures_add_up(embedder, monkeypatch) -> None:
    seconds = iter([0.5, 0.25])
    monkeypatch.setattr(model, "median_seconds", lambda *_: next(seconds))
    row = model.measure_length(embedder, length=16, tokens=64, rounds=1, rate=1e9)
    assert (row.texts, row.tokens) == (4, 64)
    c = embedder.info.config
    C, F, q, kv = c.hidden_size, c.intermediate_size, 4 * 32, 2 * 2 * 32
    ids = [tuple(text) for text in embedder.token_ids(texts_of(4, 15))]
    nodes = {text[: n + 1] for text in ids for n in range(16)}
    key_value, rest, pair = 2 * C * kv, 2 * C * (2 * q + 3 * F), 4 * q
    full = len(nodes) * (key_value + rest) + sum(map(len, nodes)) * pair
    last = len(nodes) * key_value + 4 * rest + 4 * 16 * pair
    assert row.needed_flops == 2 * full + last
    assert row.encode_mfu == pytest.approx(row.needed_flops / 0.5 / 1e9)
    assert row.forward_mfu == pytest.approx(row.needed_flops / 0.25 / 1e9)
    assert row.peak_bytes > 50e6


def test_the_command(capfd, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "matmul_rate", lambda *_: (1e11, "made up"))
    out = tmp_path / "model.jsonl"
    words = ["--model", "tiny", "--device", "cpu", "--layers", "1", "--tokens", "64"]
    plot = tmp_path / "model.svg"
    words += ["--lengths", "16", "100", "--rounds", "1", "--json", str(out), "--plot", str(plot)]
    assert main(["bench", "model", *words]) == 0
    lines = capfd.readouterr().out.splitlines()
    head, *rows, short, long = (json.loads(line) for line in out.read_text().splitlines())
    assert (head["model"], head["layers"], head["flops_per_s"]) == ("tiny", 1, 1e11)
    assert [(row["length"], row["texts"], row["tokens"]) for row in rows] == [
        (16, 4, 64),
        (100, 1, 100),
    ]
    assert (short["latency_of"], long["latency_of"]) == (12, 128)
    assert 0 < short["p20_ms"] <= short["median_ms"] <= short["p80_ms"]
    assert all(row["breakdown"]["stages_s"]["forward"] > 0 for row in rows)
    assert b"<svg" in plot.read_bytes()
    goes = lines.index(next(line for line in lines if line.startswith("where the time goes")))
    assert lines[goes].split()[-4:] == ["16", "tokens", "100", "tokens"]
    assert lines[goes + 1].split()[0] == "tokens"
    assert any("tiny shape, 1 layers, random weights" in line for line in lines[:2])
    assert sum("tok/s" in line for line in lines) == 2
    assert sum(line.startswith("one text of") for line in lines) == 2


def test_a_plot_that_cannot_be_drawn_is_refused_first(capfd) -> None:
    assert main(["bench", "model", "--plot", "a.pdf"]) == 2
    assert "expected a name that ends in .svg or .png" in capfd.readouterr().err
    assert main(["bench", "model", "--quantize", "int8", "--plot", "a.svg"]) == 2
    assert "--plot: does not go with --quantize" in capfd.readouterr().err
