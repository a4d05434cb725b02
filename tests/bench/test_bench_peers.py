"""The comparison with sentence-transformers: its FLOP count by hand, and a dry run."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lastword.bench import peers
from lastword.bench.flops import Work, needed_flops, work
from lastword.bench.workloads import FULL, Workload, workloads
from lastword.cli.main import main


@dataclass(frozen=True)
class Sizes:
    hidden_size: int = 8
    intermediate_size: int = 16
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 4


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param([], Work(0, 0, 0, 0, 0), id="nothing"),
        pytest.param([[5, 6, 7]], Work(3, 3, 1, 6, 3), id="one"),
        pytest.param([[5, 6, 7], [5, 6, 7]], Work(6, 3, 1, 6, 3), id="twins"),
        pytest.param([[1, 2, 9], [1, 2, 8]], Work(6, 4, 2, 9, 6), id="shared-prefix"),
        pytest.param([[1, 2, 3], [1, 2]], Work(5, 3, 2, 6, 5), id="prefix-of-another"),
        pytest.param([[2], [1, 2], [1, 3], [1, 2]], Work(7, 4, 3, 6, 5), id="unsorted"),
    ],
)
def test_work(texts: list[list[int]], expected: Work) -> None:
    assert work(texts) == expected


def brute_force(sizes: Sizes, texts: list[list[int]]) -> int:
    """The same count the slow way: every matrix product and every pair, one by one."""
    c, f, d = sizes.hidden_size, sizes.intermediate_size, sizes.head_dim
    q, kv = sizes.num_attention_heads * d, sizes.num_key_value_heads * d
    nodes = {tuple(text[: n + 1]) for text in texts for n in range(len(text))}
    ends = {tuple(text) for text in texts}
    total = 0
    for layer in range(sizes.num_hidden_layers):
        last = layer == sizes.num_hidden_layers - 1
        for node in nodes:
            total += 2 * (2 * c * kv)  # k and v
            if not last or node in ends:
                total += 2 * c * q + 2 * q * c + 2 * (2 * c * f) + 2 * f * c
                for _key in node:
                    total += sizes.num_attention_heads * (2 * d + 2 * d)
    return total


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_needed_flops_by_brute_force(layers: int) -> None:
    sizes = Sizes(num_hidden_layers=layers)
    texts = [[1, 2, 3, 4], [1, 2, 5], [1, 2], [7], [1, 2, 5], [8, 9, 1, 1, 1]]
    assert needed_flops(sizes, work(texts)) == brute_force(sizes, texts)


def test_workloads_are_the_stated_ones() -> None:
    documents, queries, singles = workloads(*FULL)
    assert [len(load.texts) for load in (documents, queries, singles)] == [512, 2000, 48]
    words = [len(text.split()) + 1 for text in documents.texts]
    assert min(words) >= 16
    assert max(words) <= 512
    assert 10.5 < sum(len(text.split()) + 1 for text in queries.texts) / 2000 < 11.5
    assert workloads(*FULL) == [documents, queries, singles]


def small(count: int) -> list[Workload]:
    return workloads(documents=count, queries=2 * count, singles=2)


def test_dry_run(tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "workloads", lambda *_: small(6))
    monkeypatch.setattr(peers, "product_rate", lambda *_: (1e11, "made up"))
    words = ["--quick", "--rounds", "2", "--threads", "1", "--model", str(tiny_checkpoint)]
    assert main(["bench", "peers", *words]) == 0
    out = capfd.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert [row["workload"] for row in result["rows"]] == ["a", "b", "c"]
    assert all(row["max_abs_difference"] <= peers.TOLERANCE for row in result["rows"])
    assert all(row["min_cosine"] > 0.99999 for row in result["rows"])
    assert all(row["share_of_limit"] > 0 for row in result["rows"])
    assert all(peak > 50e6 for peak in result["peak_bytes"].values())
    assert any("short queries" in line and "x" in line for line in out)


def test_no_figures_when_vectors_differ(tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "workloads", lambda *_: small(2))
    monkeypatch.setattr(peers, "TOLERANCE", -1.0)
    assert main(["bench", "peers", "--threads", "1", "--model", str(tiny_checkpoint)]) == 1
    streams = capfd.readouterr()
    assert streams.out == ""
    assert "no figures" in streams.err


def test_bf16_is_held_to_a_cosine(tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "workloads", lambda *_: small(2))
    monkeypatch.setattr(peers, "product_rate", lambda *_: (1e11, "made up"))
    words = ["bench", "peers", "--dtype", "bfloat16", "--rounds", "1", "--threads", "1"]
    assert main([*words, "--model", str(tiny_checkpoint)]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert all(row["max_abs_difference"] > peers.TOLERANCE for row in result["rows"])
    assert all(peers.COSINE < row["min_cosine"] < 1 for row in result["rows"])


@pytest.mark.parametrize(
    ("worst", "least", "dtype", "agrees"),
    [
        pytest.param(1e-5, 1.0, torch.float32, True, id="fp32"),
        pytest.param(3e-5, 1.0, torch.float32, False, id="fp32-differs"),
        pytest.param(3e-3, 0.999, torch.bfloat16, True, id="bf16"),
        pytest.param(3e-3, 0.98, torch.bfloat16, False, id="bf16-differs"),
        pytest.param(float("nan"), float("nan"), torch.float32, False, id="fp32-nan"),
        pytest.param(float("nan"), float("nan"), torch.bfloat16, False, id="bf16-nan"),
    ],
)
def test_agreement(worst: float, least: float, dtype: torch.dtype, agrees: bool) -> None:
    assert peers._agree({"a": (0.0, 1.0), "b": (worst, least)}, dtype) == agrees


def test_what_is_missing_is_said_first(tmp_path: Path, monkeypatch, capfd) -> None:
    assert main(["bench", "peers", "--model", str(tmp_path / "gone")]) == 2
    assert "gone/config.json" in capfd.readouterr().err
    assert main(["bench", "peers", "--device", "cuda:99"]) == 2
    assert "--device: not there" in capfd.readouterr().err
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    assert main(["bench", "peers"]) == 2
    assert "pip install 'lastword[bench]'" in capfd.readouterr().err


def test_a_peer_that_dies_is_one_line(tiny_checkpoint: Path, tmp_path: Path, capfd) -> None:
    for file in tiny_checkpoint.iterdir():
        if file.name != "model.safetensors" and file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    words = ["bench", "peers", "--quick", "--threads", "1", "--model", str(tmp_path)]
    assert main(words) == 2
    assert (
        capfd.readouterr().err.splitlines()[-1].startswith("lastword: lastword: its process died")
    )
