"""The comparison with other libraries: its FLOP count by hand, and a dry run with each."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from lastword.bench.models.flops import Work, needed_flops, work
from lastword.bench.models.workloads import FULL, Workload, workloads
from lastword.bench.options import PEERS
from lastword.bench.peers import peer_benchmark as peers
from lastword.cli.main import main
from lastword.errors import ConfigError, MissingPackageError
from lastword.weights import ModelConfig
from lastword.weights.config import parse_config

ST = "sentence-transformers"


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
        pytest.param([[5, 6, 7], [5, 6, 7]], Work(6, 3, 1, 6, 3), id="equal"),
        pytest.param([[1, 2, 9], [1, 2, 8]], Work(6, 4, 2, 9, 6), id="shared-prefix"),
        pytest.param([[1, 2, 3], [1, 2]], Work(5, 3, 2, 6, 5), id="prefix-of-another"),
        pytest.param([[2], [1, 2], [1, 3], [1, 2]], Work(7, 4, 3, 6, 5), id="unsorted"),
    ],
)
def test_work(texts: list[list[int]], expected: Work) -> None:
    assert work(texts) == expected


def brute_force(sizes: Sizes, texts: list[list[int]]) -> int:
    """Count the same by brute force: every matmul and every pair, one by one."""
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


@pytest.mark.parametrize("beside", [[ST], [*PEERS]], ids=len)
def test_dry_run(beside: list[str], tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "workloads", lambda *_: small(6))
    monkeypatch.setattr(peers, "product_rate", lambda *_: (1e11, "made up"))
    for peer in beside:
        for package in peers.PACKAGES[peer]:
            pytest.importorskip(package)
    words = ["--quick", "--rounds", "2", "--threads", "1", "--model", str(tiny_checkpoint)]
    assert main(["bench", "peers", *words, "--beside", *beside]) == 0
    out = capfd.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert [row["workload"] for row in result["rows"]] == ["a", "b", "c"]
    assert set(result["peers"]) == {"lastword", *peers._packages(beside)}
    for row in result["rows"]:
        assert list(row["seconds"]) == ["lastword", *beside]
        assert row["share_of_limit"] > 0
        for peer in beside:
            assert 0 <= row["max_abs_difference"][peer] <= peers.TOLERANCE
            assert row["min_cosine"][peer] > 0.99999
            assert row["speedup"][peer] == row["seconds"][peer] / row["seconds"]["lastword"]
            low, high = row["speedup_range"][peer]
            assert low <= high
    assert all(peak > 20e6 for peak in result["peak_bytes"].values())
    assert out[0].split()[-len(beside) :] == beside
    assert any("short queries" in line and "x" in line and " to " in line for line in out)


def test_a_checkpoint_without_prompts(tiny_checkpoint: Path, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "workloads", lambda *_: small(2))
    monkeypatch.setattr(peers, "product_rate", lambda *_: (1e11, "made up"))
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / "config_sentence_transformers.json").unlink()
    words = ["--quick", "--threads", "1", "--model", str(folder)]
    assert main(["bench", "peers", *words]) == 0
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for load, row in zip(
        small(2), json.loads(capfd.readouterr().out.splitlines()[-1])["rows"], strict=True
    ):
        assert row["tokens_requested"] == sum(
            len(tokenizer.encode(text).ids) for text in load.texts
        )


def test_what_is_needed_is_known_before_anything_is_timed(
    tiny_checkpoint: Path, monkeypatch, capfd
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("config.json", "no")

    monkeypatch.setattr(peers, "_needed", refuse)
    monkeypatch.setattr(peers, "Child", None)
    words = ["--threads", "1", "--beside", ST, "--model", str(tiny_checkpoint)]
    assert main(["bench", "peers", *words]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == "lastword: config.json: no."


def test_no_figures_when_vectors_differ(tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "workloads", lambda *_: small(2))
    monkeypatch.setattr(peers, "TOLERANCE", -1.0)
    words = ["--threads", "1", "--beside", ST, "--model", str(tiny_checkpoint)]
    assert main(["bench", "peers", *words]) == 1
    streams = capfd.readouterr()
    assert streams.out == ""
    assert "no figures" in streams.err


def test_bf16_is_checked_by_cosine(tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "workloads", lambda *_: small(2))
    monkeypatch.setattr(peers, "product_rate", lambda *_: (1e11, "made up"))
    words = ["bench", "peers", "--dtype", "bfloat16", "--rounds", "1", "--threads", "1"]
    assert main([*words, "--model", str(tiny_checkpoint)]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert all(row["max_abs_difference"][ST] > peers.TOLERANCE for row in result["rows"])
    assert all(peers.COSINE < row["min_cosine"][ST] < 1 for row in result["rows"])


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
    fine = {ST: (0.0, 1.0)}
    assert peers._agree({"a": fine, "b": fine | {"llama.cpp": (worst, least)}}, dtype) == agrees


def test_what_is_missing_is_said_first(tmp_path: Path, monkeypatch, capfd) -> None:
    assert main(["bench", "peers", "--model", str(tmp_path / "gone")]) == 2
    assert "gone/config.json" in capfd.readouterr().err
    assert main(["bench", "peers", "--device", "cuda:99"]) == 2
    assert "--device: not there" in capfd.readouterr().err
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    assert main(["bench", "peers"]) == 2
    assert "pip install 'lastword[bench]'" in capfd.readouterr().err
    assert main(["bench", "peers", "--beside", "llama.cpp"]) == 2
    assert "--beside llama.cpp: needs xllamacpp and gguf." in capfd.readouterr().err


def config_with(**changes: object) -> ModelConfig:
    plain = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    }
    return parse_config(plain | changes, "config.json")


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}


@pytest.mark.parametrize(
    ("changes", "device", "dtype", "beside"),
    [
        pytest.param({}, "cpu", torch.float32, [*PEERS], id="all"),
        pytest.param({}, "cpu", torch.bfloat16, [ST], id="bf16"),
        pytest.param({}, "cuda", torch.float32, [ST], id="gpu"),
        pytest.param({"rope_scaling": YARN}, "cpu", torch.float32, [ST], id="yarn"),
        pytest.param({"attention_bias": True}, "cpu", torch.float32, [ST], id="biases"),
    ],
)
def test_who_takes_part(changes, device, dtype, beside, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: True)
    where = (config_with(**changes), torch.device(device), dtype)
    assert peers._beside(None, *where) == beside
    said = capfd.readouterr().err
    assert said.startswith("llama.cpp is left out: ") == ("llama.cpp" not in beside)
    if "llama.cpp" not in beside:
        with pytest.raises(ConfigError) as caught:
            peers._beside(["llama.cpp"], *where)
        assert caught.value.where == "--beside llama.cpp"


def test_a_library_that_is_not_installed_is_left_out(monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "gguf" else True)
    assert peers._beside(None, None, torch.device("cpu"), torch.float32) == [ST]
    assert "left out: needs gguf. Install it with: pip install" in capfd.readouterr().err
    with pytest.raises(MissingPackageError) as caught:
        peers._beside(["llama.cpp"], None, torch.device("cpu"), torch.float32)
    error = caught.value
    assert (error.where, error.what) == ("--beside llama.cpp", "needs gguf")
    assert "pip install 'lastword[bench]'" in error.remedy


def test_each_goes_first_in_its_turn() -> None:
    asked: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, **_: object) -> float:
            asked.append(self.name)
            return 1.0

    seconds, rate = peers._time({n: Fake(n) for n in "xyz"}, small(1)[:1], 3, lambda: 2.0)
    assert asked == [*"xyz", *"yzx", *"zxy"]
    assert (seconds, rate) == ({"a": {name: [1.0, 1.0, 1.0] for name in "xyz"}}, 2.0)


def test_medians_and_spread(tiny_checkpoint: Path) -> None:
    taken = {"lastword": [2.0, 1.0, 4.0], ST: [3.0, 4.0, 5.0]}
    row = peers._figures(peers._needed(tiny_checkpoint, small(1)[0]), taken, 1e9)
    assert row["seconds"] == {"lastword": 2.0, ST: 4.0}
    assert row["speedup"] == {ST: 2.0}
    assert row["speedup_range"] == {ST: [1.25, 4.0]}
    assert row["round_seconds"] == taken
    assert row["share_of_limit"] == pytest.approx(row["needed_gflop"] / 2)


def test_a_peer_that_dies_is_one_line(tiny_checkpoint: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    words = ["bench", "peers", "--beside", ST, "--threads", "1", "--model", str(tmp_path)]
    assert main(words) == 2
    assert (
        capfd.readouterr().err.splitlines()[-1].startswith("lastword: lastword: its process died")
    )
