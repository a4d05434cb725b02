"""The comparison of rerankers: pairs, what the libraries get of them, what is counted, dry runs."""

import json
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest
import torch
from helpers.small_models import KINDS, make_reranker
from helpers.transformers_reference import their_ids
from tokenizers import Tokenizer

from lastword import Reranker
from lastword.bench.models.flops import work
from lastword.bench.models.workloads import pair_workload
from lastword.bench.options import queries_and_documents
from lastword.bench.peers import libraries, limits
from lastword.bench.peers import peer_benchmark as peers
from lastword.bench.peers.rounds import LOG_ODDS_TOLERANCE, Lane, accuracy_of, disagreement, embed
from lastword.bench.peers.table import TARGETS, target_lines
from lastword.cli.main import main
from lastword.errors import ConfigError

CPU = torch.device("cpu")
ST = "sentence-transformers"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("rerankers")
    return {kind: make_reranker(place / f"{kind}-reranker", kind) for kind in KINDS}


def setup_of(folder: Path, tmp_path: Path, python: Path | None = None) -> libraries.Setup:
    return libraries.Setup.of(folder, tmp_path, CPU, 1, python, rerank=True)


def test_pairs() -> None:
    load = pair_workload(3, 4)
    queries = [query for query, _ in load.texts]
    assert [queries.index(query) for query in queries] == [0] * 4 + [4] * 4 + [8] * 4
    lengths = [len(document.split()) for _, document in load.texts]
    assert min(lengths) >= 15
    assert max(lengths) <= 511
    assert pair_workload(3, 4) == load
    other = pair_workload(3, 4, turn=1)
    assert {*other.texts}.isdisjoint(load.texts)


@pytest.mark.parametrize(
    ("asked", "layers", "device", "quick", "number"),
    [
        pytest.param((), 28, "cpu", False, 100, id="real"),
        pytest.param((), 4, "cpu", False, 250, id="few-layers"),
        pytest.param((), 4, "cpu", True, 20, id="quick"),
        pytest.param((), 28, "cuda", False, 1000, id="gpu"),
        pytest.param((20, 50), 28, "cpu", True, 1000, id="asked"),
    ],
)
def test_how_many_pairs(asked, layers: int, device: str, quick: bool, number: int) -> None:
    args = Namespace(quick=quick, rerank=asked)
    (load,) = peers.loads_of(args, layers, torch.device(device), 0)
    assert len(load.texts) == number


def test_the_argument() -> None:
    assert queries_and_documents("20x50") == (20, 50)
    for wrong in ("20", "20x", "0x5", "2x3x4", "axb"):
        with pytest.raises(ArgumentTypeError):
            queries_and_documents(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_every_library_gets_the_tokens_of_transformers(folders, kind: str, tmp_path: Path) -> None:
    setup, load = setup_of(folders[kind], tmp_path), pair_workload(2, 2)
    ids = their_ids(folders[kind], load.texts)
    assert setup.tokenize(load.texts, "pair") == ids
    written = json.loads(setup.write_texts(load).read_text())
    assert [tuple(pair) for pair in written["texts"]] == load.texts
    # vLLM joins the two parts, or tokenises them apart.
    tokenizer = Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))
    for left, right, expected in zip(*written["parts"], ids, strict=True):
        assert tokenizer.encode(left + right, add_special_tokens=False).ids == expected
        before, after = (tokenizer.encode(each, add_special_tokens=False) for each in (left, right))
        assert before.ids + after.ids == expected


def test_prefix_and_instruction_are_not_counted(folders, tmp_path: Path) -> None:
    setup, load = setup_of(folders["tied"], tmp_path), pair_workload(2, 3)
    ids = setup.tokenize(load.texts, "pair")
    prompt = setup.prompt_ids("pair")
    assert len(prompt) > 40
    assert all(each[: len(prompt)] == prompt for each in ids)
    found = limits.workload_cost(setup, load)
    assert found.tokens_requested == sum(map(len, ids))
    assert found.tokens == work(ids).tokens - len(prompt)
    assert len(found.call_flops) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_lastword_and_sentence_transformers_agree(folders, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    setup, load = setup_of(folders[kind], tmp_path), pair_workload(2, 3)
    found = {}
    for library in ("lastword", ST):
        child = libraries.open_library(library, setup, "fp32", threads=1, longest=0)
        try:
            found[library], seconds = embed(setup, Lane(library, child, cache=True), load)
        finally:
            child.close()
        assert seconds > 0
    identity = torch.nn.Identity()
    expected = Reranker(folders[kind], device="cpu", activation_fn=identity).predict(load.texts)
    assert found["lastword"].shape == (1, 6)
    assert float((found["lastword"][0] - expected).abs().max()) <= 1e-5
    assert float(expected.std()) > 0.1
    accuracy = accuracy_of(found[ST], found["lastword"])
    assert disagreement(accuracy, "fp32", LOG_ODDS_TOLERANCE) is None
    accuracy.max_abs_difference = 2 * LOG_ODDS_TOLERANCE
    assert disagreement(accuracy, "fp32", LOG_ODDS_TOLERANCE) == "differ by 2.00e-04, allowed 1e-04"


# Stands for vLLM: scores with transformers, from the two parts joined.
VLLM = """
class PoolingParams:
    def __init__(self, use_activation, skip_reading_prefix_cache):
        assert use_activation is False
        self.cached = 0 if skip_reading_prefix_cache else 7


class Output:
    def __init__(self, score, cached):
        self.outputs = type("Outputs", (), {"score": score})
        self.num_cached_tokens = cached


class LLM:
    def __init__(self, **settings):
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        assert settings["block_size"] == 32
        self.written = 0
        causal = settings["hf_overrides"].get("is_original_qwen3_reranker", False)
        kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        self.model = kind.from_pretrained(settings["model"], dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(settings["model"])
        words = settings["hf_overrides"].get("classifier_from_token", [])
        self.words = [self.tokenizer.convert_tokens_to_ids(word) for word in words]

    def score(self, lefts, rights, pooling_params, use_tqdm):
        import torch

        scores = []
        for left, right in zip(lefts, rights, strict=True):
            ids = self.tokenizer(left + right, return_tensors="pt", add_special_tokens=False)
            with torch.inference_mode():
                logits = self.model(input_ids=ids["input_ids"]).logits
            if self.words:
                no, yes = logits[0, -1, self.words].tolist()
                scores.append(yes - no)
            else:
                scores.append(float(logits[0, 0]))
        self.written += 1  # every run writes to the cache, and what it wrote is found by the next
        return [Output(score, pooling_params.cached * self.written) for score in scores]

    def reset_prefix_cache(self):
        self.written = 0
"""


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_in_its_own_interpreter(folders, kind: str, tmp_path: Path, vllm_python) -> None:
    python = vllm_python(VLLM)
    setup, load = setup_of(folders[kind], tmp_path, python), pair_workload(1, 3)
    child = libraries.open_library("vllm", setup, "fp32", threads=1, longest=999)
    try:
        found, _ = embed(setup, Lane("vllm", child, cache=True), load)
        path = str(setup.write_texts(load))
        for cache, cached in ((False, 0), (True, 21)):
            answer = child.ask(do="run", texts=path, save=None, cache=cache)
            assert answer["cached_tokens"] == cached
    finally:
        child.close()
    identity = torch.nn.Identity()
    expected = Reranker(folders[kind], device="cpu", activation_fn=identity).predict(load.texts)
    assert float((found[0] - expected).abs().max()) <= LOG_ODDS_TOLERANCE


def test_dry_run(folders, monkeypatch, capfd) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(limits, "matmul_rate", lambda *_: (1e11, "made up"))
    monkeypatch.setattr(limits, "read_rate", lambda *_: 1e10)
    words = ["bench", "peers", "--threads", "1", "--rerank", "2x3", "--rounds", "1"]
    assert main([*words, "--model", str(folders["classifier"])]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out.splitlines()[-1])
    rows = result["rows"]
    assert [(row["precision"], row["library"]) for row in rows] == [
        (precision, name) for precision in ("fp32", "bf16") for name in ("lastword", ST)
    ]
    assert {row["texts"] for row in rows} == {6}
    assert rows[1]["max_abs_difference"] <= LOG_ODDS_TOLERANCE < rows[2]["max_abs_difference"]
    assert "(r) 2 queries with 3 documents each: 6 pairs, " in out
    assert "log-odds differ by" in out
    assert out.count(f"{ST}: target 3x, ") == 2
    assert "llama.cpp fp32, bf16 is left out: it is not compared on reranking" in err
    assert not result["differs"]


def test_other_scores_have_no_figures(folders, monkeypatch, capfd) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(limits, "matmul_rate", lambda *_: (1e11, "made up"))
    monkeypatch.setattr(limits, "read_rate", lambda *_: 1e10)
    wrong = libraries.chat_template
    monkeypatch.setattr(libraries, "chat_template", lambda info: wrong(info).replace("yes", "no"))
    words = ["bench", "peers", "--threads", "1", "--rerank", "1x2", "--rounds", "1"]
    words += ["--precisions", "fp32", "--beside", ST, "--model", str(folders["tied"]), "--json"]
    assert main(words) == 1
    out, err = capfd.readouterr()
    assert f"{ST} fp32, 1 query with 2 documents each: log-odds differ by " in err
    assert [row["library"] for row in json.loads(out)["rows"]] == ["lastword"]


def test_who_does_not_take_part(monkeypatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda _: True)
    where = (["fp32"], None, CPU, None, lambda _: None)
    assert libraries.choose_libraries(None, *where, rerank=True) == {"fp32": [ST]}
    with pytest.raises(ConfigError) as caught:
        libraries.choose_libraries(["llama.cpp"], *where, rerank=True)
    assert caught.value.what == "it is not compared on reranking"


def test_targets() -> None:
    row = {"kind": "pair", "precision": "fp32"}
    rows = [{**row, "library": name, "speedup": 1.5} for name in ("lastword", *TARGETS)]
    assert target_lines(rows) == [
        "fp32 sentence-transformers: target 3x, missed with 1.50x",
        "fp32 vllm, no prefix cache: target 1.5x, reached with 1.50x",
        "fp32 vllm: target 1.2x, reached with 1.50x",
    ]
    assert target_lines([{**rows[1], "kind": "query"}]) == []


def test_a_random_reranker(tmp_path: Path, monkeypatch) -> None:
    """With a made tokenizer as with the real one, pairs have other scores, and no end token."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    monkeypatch.setattr(peers, "sizes_of", lambda *_: sizes)
    monkeypatch.setattr(peers, "VOCABULARY", None)
    real = peers.real_tokenizer()
    for number, found in enumerate([None] if real is None else [None, real]):
        monkeypatch.setattr(peers, "real_tokenizer", lambda found=found: found)
        folder = peers._reranker(tmp_path / f"model{number}", 1, ["fp32"], CPU)
        reranker = Reranker(folder, device="cpu", activation_fn=torch.nn.Identity())
        load = pair_workload(2, 8)
        scores = reranker.predict(load.texts)
        assert 0.1 < float(scores.std()) < 10
        ids = reranker.token_ids(load.texts)
        after = list(reranker.info.tokenizer.after)
        assert ids[0][-len(after) :] == after
        setup = libraries.Setup.of(folder, tmp_path, CPU, 1, None, rerank=True)
        prompt = setup.prompt_ids("pair")
        assert 55 <= len(prompt) <= 65
        for pair, found in zip(load.texts, ids, strict=True):
            assert found[: len(prompt)] == prompt
            words = sum(len(text.split()) for text in pair)
            assert (
                0 < len(found) - len(prompt) - len(after) - words <= 10
            )  # between query and document
