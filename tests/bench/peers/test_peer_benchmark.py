"""The comparison with other libraries: what it counts and says, and dry runs with each."""

import json
import shutil
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lastword.bench.models.flops import Work, needed_flops, work
from lastword.bench.models.workloads import Workload, long_workloads, texts_of, workloads
from lastword.bench.options import PEERS
from lastword.bench.peers import libraries, limits, rounds
from lastword.bench.peers import peer_benchmark as peers
from lastword.bench.peers.limits import Rates, WorkloadCost
from lastword.bench.peers.rounds import Accuracy
from lastword.bench.peers.schedule import Schedule, duration
from lastword.bench.peers.table import slower_lines
from lastword.cli.main import main
from lastword.errors import ConfigError, LastwordError, MissingPackageError
from lastword.weights import ModelConfig
from lastword.weights.config import parse_config

CPU = torch.device("cpu")
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
    documents, queries, singles = workloads(512, 2000, 48)
    assert [len(load.texts) for load in (documents, queries, singles)] == [512, 2000, 48]
    words = [len(text.split()) + 1 for text in documents.texts]
    assert min(words) >= 16
    assert max(words) <= 512
    assert 10.5 < sum(len(text.split()) + 1 for text in queries.texts) / 2000 < 11.5
    assert workloads(512, 2000, 48) == [documents, queries, singles]


@pytest.fixture(params=["words", "qwen"])
def made(request, tmp_path: Path, monkeypatch) -> libraries.Setup:
    """The checkpoint that `bench peers` makes, but tiny: without real tokenizers, and with Qwen's."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    monkeypatch.setattr(peers, "sizes_of", lambda *_: sizes)
    monkeypatch.setattr(peers, "VOCABULARY", None)
    if request.param == "words":
        monkeypatch.setattr(peers, "real_tokenizer", lambda: None)
    elif peers.real_tokenizer() is None:
        pytest.skip("needs LASTWORD_TEST_DATA")
    folder = peers._checkpoint(tmp_path / "model", 1, ["fp32"], CPU)
    return libraries.Setup.of(folder, tmp_path, CPU, 1, None)


@pytest.mark.parametrize("counts", [peers.REAL, peers.SHALLOW], ids=["real", "shallow"])
def test_texts_have_the_stated_numbers_of_tokens(made: libraries.Setup, counts, request) -> None:
    """In the README: documents of median 110 tokens, 16 to 512, and queries of about 11 after a prompt of 18 or 19."""
    documents, *queries = workloads(*counts)
    lengths = sorted(len(ids) for ids in made.tokenize(documents.texts, "document"))
    assert 80 <= lengths[len(lengths) // 2] <= 140
    assert lengths[0] >= 16
    assert lengths[-1] <= 512 + 1
    prompt = made.prompt_ids("query")
    assert 18 <= len(prompt) <= 19
    for load in queries:
        found = made.tokenize(load.texts, "query")
        # Qwen's tokenizer joins the prompt's colon with some words, such as "no", and splits some others.
        off = 1 if "qwen" in request.node.name else 0
        assert all(ids[: len(prompt) - off] == prompt[: len(prompt) - off] for ids in found)
        assert {len(ids) - len(prompt) for ids in found} <= {*range(7 - off, 16 + off)}
        to_compute = limits.workload_cost(made, load).tokens / len(load.texts)
        assert 8 <= to_compute <= 12


def test_texts_of_n_tokens(made: libraries.Setup, request) -> None:
    """Qwen's tokenizer splits a few words, such as "saw", where no space comes before them."""
    split = {0, 1} if "qwen" in request.node.name else {0}
    for length in (2, 12, 500, 4000):
        texts = texts_of(20, length - 1)
        assert {len(ids) - length for ids in made.tokenize(texts, "document")} <= split
    for load in long_workloads():
        assert len({len(ids) for ids in made.tokenize(load.texts, "document")}) <= len(split)


def test_every_round_has_its_own_texts() -> None:
    for make in (lambda turn: workloads(4, 4, 4, turn=turn), long_workloads):
        for first, second in zip(make(1), make(2), strict=True):
            assert len(first.texts) == len(second.texts)
            assert set(first.texts).isdisjoint(second.texts)
    lengths = [[len(text.split()) + 1 for text in load.texts] for load in long_workloads()]
    assert lengths == [[4000] * 4, [500] * 16]


@pytest.mark.parametrize(
    ("layers", "device", "quick", "counts"),
    [
        pytest.param(28, "cpu", False, [24, 60, 6], id="real"),
        pytest.param(4, "cpu", False, [96, 200, 16, 4, 16], id="few-layers"),
        pytest.param(4, "cpu", True, [8, 20, 4], id="quick"),
        pytest.param(28, "cuda", False, [512, 2000, 48, 4, 16], id="gpu"),
    ],
)
def test_how_many_texts(layers: int, device: str, quick: bool, counts: list[int]) -> None:
    args = Namespace(quick=quick, rerank=None)
    made = peers.loads_of(args, layers, torch.device(device), 0)
    assert [len(load.texts) for load in made] == counts


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts, and rates that take no time to measure."""
    made = lambda *_: workloads(3, 6, 2, turn=_[-1])  # noqa: E731
    monkeypatch.setattr(peers, "loads_of", made)
    monkeypatch.setattr(limits, "matmul_rate", lambda *_: (1e11, "made up"))
    monkeypatch.setattr(limits, "read_rate", lambda *_: 1e10)


def bench(capfd, *words: str, status: int = 0) -> tuple[dict, str, str]:
    """Run `bench peers` with one thread and return the JSON, stdout and stderr."""
    assert main(["bench", "peers", "--threads", "1", *words]) == status
    out, err = capfd.readouterr()
    return json.loads(out.splitlines()[-1]), out, err


def test_dry_run(few, tiny_checkpoint: Path, capfd) -> None:
    for package in ("sentence_transformers", "xllamacpp", "gguf"):
        pytest.importorskip(package)
    result, out, err = bench(capfd, "--rounds", "2", "--model", str(tiny_checkpoint))
    rows = result["rows"]
    by_precision = {"fp32": ["lastword", ST, "llama.cpp"], "bf16": ["lastword", ST, "llama.cpp"]}
    by_precision |= {"8bit": ["lastword", "llama.cpp"]}
    assert [(row["precision"], row["workload"], row["library"]) for row in rows] == [
        (precision, name, library)
        for precision, some in by_precision.items()
        for name in "abc"
        for library in some
    ]
    for row in rows:
        assert len(row["round_seconds"]) == 2
        assert row["share_of_limit"] == row["limit_seconds"] / row["seconds"] > 0
        assert row["speedup_range"][0] <= row["speedup_range"][1]
        assert row["min_cosine"] <= row["mean_cosine"] + 1e-12
        exact = row["precision"] == "fp32"
        assert (row["max_abs_difference"] <= rounds.TOLERANCE) == exact
        assert (row["speedup"] == 1) or row["library"] != "lastword"
        ours = next(
            each
            for each in rows
            if each["library"] == "lastword"
            and (each["precision"], each["workload"]) == (row["precision"], row["workload"])
        )
        assert row["speedup"] == row["seconds"] / ours["seconds"]
    eights = [row for row in rows if row["precision"] == "8bit"]
    assert all(0.99 < row["mean_cosine"] < 0.99999 for row in eights)
    assert all(peak > 20e6 for some in result["peak_bytes"].values() for peak in some.values())
    assert set(result["versions"]) == {
        "lastword", "gguf", "sentence-transformers", "transformers", "xllamacpp",
    }  # fmt: skip
    assert out.count("llama.cpp  ") == 9
    assert "2 layers flatter lastword" in out
    assert f"{ST} 8bit is left out: it has no 8-bit weights." in err
    assert "vllm fp32, bf16, 8bit is left out: needs --python" in err
    assert "rounds: about" in err
    assert " left\n" in err


def test_8_bits_alone_are_compared_with_fp32(few, tiny_checkpoint: Path, capfd) -> None:
    pytest.importorskip("xllamacpp")
    words = ("--rounds", "1", "--precisions", "8bit", "--json", "--model", str(tiny_checkpoint))
    result, out, err = bench(capfd, *words)
    assert {row["precision"] for row in result["rows"]} == {"8bit"}
    assert all(0.99 < row["mean_cosine"] < 0.99999 for row in result["rows"])
    assert len(out.splitlines()) == 1
    assert "peak memory" in err


def test_a_checkpoint_without_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / "config_sentence_transformers.json").unlink()
    setup = libraries.Setup.of(folder, tmp_path, CPU, 1, None)
    load = Workload("b", "", ["what is gravity"], "query")
    assert json.loads(setup.write_texts(load).read_text())["prompt"] == ""
    assert (
        limits.workload_cost(setup, load).tokens
        == limits.workload_cost(setup, load).tokens_requested
    )


def test_busy_loops_run_and_are_ended() -> None:
    with pytest.raises(KeyboardInterrupt), peers._busy_loops(2) as loops:
        assert [loop.poll() for loop in loops] == [None, None]
        raise KeyboardInterrupt
    assert all(loop.poll() is not None for loop in loops)


def test_busy(few, tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(peers, "_BUSY_LOOPS", 0)  # none beside other tests
    words = ["bench", "peers", "--busy", "--rounds", "1", "--threads", "1"]
    status = main([*words, "--model", str(tiny_checkpoint)])
    out, err = capfd.readouterr()
    result = json.loads(out.splitlines()[-1])
    libraries_ = {row["library"] for row in result["rows"]}
    assert libraries_ == {"lastword", "lastword, 1 thread", ST}
    slower = [row for row in result["rows"] if row["speedup"] < 1]
    assert status == (1 if slower else 0)
    assert err.count("\nslower: ") == len(slower)


def test_scaling(few, tiny_checkpoint: Path, capfd) -> None:
    words = ("--scaling", "--threads", "2", "--rounds", "1", "--precisions", "fp32", "--model")
    result, out, _ = bench(capfd, *words, str(tiny_checkpoint))
    ours = {"lastword", "lastword, 1 thread", "lastword, 2 models"}
    assert {row["library"] for row in result["rows"]} == ours
    assert "lastword, 2 models" in out
    assert set(result["versions"]) == {"lastword"}
    peaks = result["peak_bytes"]["fp32"]
    assert peaks["lastword, 2 models"] > peaks["lastword, 1 thread"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threads", "1"), "--threads 1, cpu"),
        (("--beside", ST), "compares with lastword itself only"),
    ],
)
def test_scaling_is_refused(words, message, capfd) -> None:
    assert main(["bench", "peers", "--scaling", *words]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("mode", ["--grid", "--busy"])
def test_8_bits_that_the_other_library_lacks_are_refused(mode: str, capfd) -> None:
    assert main(["bench", "peers", mode, "--precisions", "fp32", "8bit"]) == 2
    message = "sentence-transformers has no 8-bit weights; got 8bit, expected fp32 or bf16"
    assert message in capfd.readouterr().err


def test_slower_rows_are_named() -> None:
    row = {"title": "documents", "precision": "fp32", "library": ST}
    assert slower_lines([row | {"speedup": 1.0}, row | {"speedup": 2.0}]) == []
    assert slower_lines([row | {"speedup": 0.5}]) == [
        f"slower: documents in fp32: lastword takes 2.00 times as long as {ST}"
    ]


def test_no_figures_when_vectors_differ(few, tiny_checkpoint: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(rounds, "TOLERANCE", 0.0)
    words = ("--rounds", "1", "--precisions", "fp32", "--beside", ST, "--model")
    result, _, err = bench(capfd, *words, str(tiny_checkpoint), status=1)
    assert {row["library"] for row in result["rows"]} == {"lastword"}
    assert f"{ST} fp32, documents: vectors differ by" in err
    assert "allowed 0e+00: no figures" in err
    assert len(result["left_out"]) == 3


@pytest.mark.parametrize(
    ("worst", "least", "precision", "agrees"),
    [
        pytest.param(1e-5, 1.0, "fp32", True, id="fp32"),
        pytest.param(3e-5, 1.0, "fp32", False, id="fp32-differs"),
        pytest.param(3e-3, 0.999, "bf16", True, id="bf16"),
        pytest.param(3e-3, 0.97, "bf16", False, id="bf16-differs"),
        pytest.param(3e-2, 0.97, "8bit", True, id="8bit"),
        pytest.param(3e-2, 0.8, "8bit", False, id="8bit-differs"),
        pytest.param(float("nan"), float("nan"), "fp32", False, id="fp32-nan"),
        pytest.param(float("nan"), float("nan"), "8bit", False, id="8bit-nan"),
    ],
)
def test_agreement(worst: float, least: float, precision: str, agrees: bool) -> None:
    assert (rounds.disagreement(Accuracy(worst, least, least), precision) is None) == agrees


def test_accuracy() -> None:
    reference = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = rounds.accuracy_of(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), reference)
    assert found.max_abs_difference == pytest.approx(0.6)
    assert found.mean_cosine == pytest.approx(0.9)
    assert found.min_cosine == pytest.approx(0.8)


def test_what_is_missing_is_said_first(tmp_path: Path, monkeypatch, capfd) -> None:
    def fails_with(said: str, *words: str) -> None:
        assert main(["bench", "peers", *words]) == 2
        assert said in capfd.readouterr().err

    fails_with("gone/config.json", "--model", str(tmp_path / "gone"))
    fails_with("--device: not there", "--device", "cuda:99")
    fails_with("--beside vllm: needs --python; got none", "--beside", "vllm")
    fails_with(f"--python: has no vLLM; got {tmp_path}", "--python", str(tmp_path))
    fails_with("--grid: compares with sentence-transformers only", "--grid", "--beside", ST)
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    fails_with("pip install 'lastword[bench]'")
    fails_with("--beside llama.cpp: needs xllamacpp and gguf.", "--beside", "llama.cpp")


def test_a_machine_without_8_bits(monkeypatch, capfd) -> None:
    def refuse() -> None:
        raise ConfigError("quantize", "int8 is not supported on this machine")

    monkeypatch.setattr(peers, "check_int8", refuse)
    words = {"precisions": None, "beside": None, "python": None, "rerank": None}
    args = Namespace(grid=False, busy=False, scaling=False, threads=2, **words)
    assert peers._precisions(args, CPU) == ["fp32", "bf16"]
    assert capfd.readouterr().err.startswith("8bit is left out: int8 is not supported")
    args.precisions = ["8bit"]
    with pytest.raises(ConfigError):
        peers._precisions(args, CPU)
    with pytest.raises(ConfigError) as caught:
        peers._precisions(args, torch.device("cuda"))
    assert caught.value.where == "--precisions"
    args.precisions = None
    assert peers._precisions(args, torch.device("cuda")) == ["bf16"]


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
LLAMA = "llama.cpp"


@pytest.mark.parametrize(
    ("changes", "device", "precision", "names"),
    [
        pytest.param({}, "cpu", "fp32", [*PEERS], id="all"),
        pytest.param({}, "cpu", "bf16", [*PEERS], id="bf16"),
        pytest.param({}, "cpu", "8bit", [LLAMA], id="8bit"),
        pytest.param({}, "cuda", "fp32", [ST], id="gpu"),
        pytest.param({"rope_scaling": YARN}, "cpu", "fp32", [ST, "vllm"], id="yarn"),
        pytest.param({"attention_bias": True}, "cpu", "fp32", [ST, "vllm"], id="biases"),
    ],
)
def test_who_takes_part(changes, device, precision, names, monkeypatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda _: True)
    where = ([precision], config_with(**changes), torch.device(device), Path("python"))
    said: list[str] = []
    assert libraries.choose_libraries(None, *where, said.append) == {precision: names}
    missing = [each for each in PEERS if each not in names]
    assert [line.split(" is left out: ")[0] for line in said] == [
        f"{each} {precision}" for each in missing
    ]
    for each in missing:
        with pytest.raises(ConfigError) as caught:
            libraries.choose_libraries([each], *where, said.append)
        assert caught.value.where == f"--beside {each}"


def test_a_library_that_is_not_installed_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "gguf" else True)
    said: list[str] = []
    where = (["fp32"], None, CPU, None, said.append)
    assert libraries.choose_libraries(None, *where) == {"fp32": [ST]}
    assert said[0].startswith("llama.cpp fp32 is left out: needs gguf. Install it with: pip")
    assert said[1].startswith("vllm fp32 is left out: needs --python")
    with pytest.raises(MissingPackageError) as caught:
        libraries.choose_libraries(["llama.cpp"], *where)
    assert (caught.value.where, caught.value.what) == ("--beside llama.cpp", "needs gguf")


class Fake:
    """A child that answers at once, or dies at its nth order."""

    def __init__(self, name: str, asked: list[str], dies_at: int = -1) -> None:
        self.name, self.asked, self.dies_at = name, asked, dies_at

    def ask(self, **order: object) -> dict[str, float]:
        self.asked.append(self.name)
        if self.asked.count(self.name) == self.dies_at:
            raise LastwordError(self.name, "its process died", got="out of memory")
        if order["save"]:
            Path(str(order["save"])).write_bytes(bytes(torch.ones(1).numpy().tobytes()))
        return {"seconds": 1.0, "bytes": 1}


def runner(tiny_checkpoint: Path, tmp_path: Path, said: list[str]) -> rounds.Runner:
    setup = libraries.Setup.of(tiny_checkpoint, tmp_path, CPU, 1, None)
    loads = lambda turn: workloads(1, 0, 0, turn=turn)[:1]  # noqa: E731
    return rounds.Runner(setup, "bf16", loads, 3, Schedule(), {}, lambda: None, said.append)


def test_each_goes_first_in_its_turn(tiny_checkpoint: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    run = runner(tiny_checkpoint, tmp_path, [])
    lanes = {"a": [rounds.Lane(name, Fake(name, asked), cache=True) for name in "xyz"]}
    group = rounds.Group("bf16")
    for turn in (1, 2, 3):
        run._round(group, lanes, turn)
    assert asked == [*"yzx", *"zxy", *"xyz"]
    assert group.seconds == {"a": {name: [1.0, 1.0, 1.0] for name in "xyz"}}


def test_a_library_that_dies_is_left_out_and_the_rest_goes_on(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    asked: list[str] = []
    run = runner(tiny_checkpoint, tmp_path, said)
    names = {"lastword": -1, "vllm": 2}
    lanes = {"a": [rounds.Lane(n, Fake(n, asked, at), cache=True) for n, at in names.items()]}
    group = rounds.Group("bf16")
    for turn in (1, 2, 3):
        run._round(group, lanes, turn)
    assert group.seconds == {"a": {"lastword": [1.0, 1.0, 1.0]}}
    reason = "vllm bf16 is left out: its process died; got out of memory."
    assert group.left_out == [reason]
    assert reason in said
    lanes = {"a": [rounds.Lane("lastword", Fake("lastword", asked, len(asked)), cache=True)]}
    with pytest.raises(LastwordError, match="its process died"):
        rounds.Runner._round(
            run, group, {"a": [rounds.Lane("lastword", Fake("lastword", [], 1), cache=True)]}, 4
        )


@pytest.mark.parametrize(("words", "block"), [(18, 0), (31, 0), (32, 32), (200, 32)])
def test_queries_run_with_vllms_prefix_cache_if_it_can_find_the_prompt(
    tiny_checkpoint: Path, tmp_path: Path, words: int, block: int
) -> None:
    """vLLM refuses blocks of fewer than 32 tokens on a CPU, and finds only whole blocks."""
    documents, queries, singles = workloads(1, 1, 1)
    setup = replace(
        libraries.Setup.of(tiny_checkpoint, tmp_path, CPU, 1, None),
        tokenize=lambda texts, kind: [[1] * (words if kind == "query" else 0) + [0] for _ in texts],
    )
    assert (setup.block_size("query"), setup.block_size("document")) == (block, 0)
    children = {"lastword": Fake("lastword", []), "vllm": Fake("vllm", [])}
    lanes = [
        [(lane.label, lane.cache) for lane in rounds.lanes_of(children, each, setup)]
        for each in (documents, queries, singles)
    ]
    assert lanes[0] == [("lastword", False), ("vllm", False)]
    both = [("vllm", True), ("vllm, no prefix cache", False)]
    assert lanes[1] == [("lastword", True), *(both if block else [("vllm", False)])]
    assert lanes[2] == lanes[1]


def test_the_prompt_is_not_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    setup = libraries.Setup.of(tiny_checkpoint, tmp_path, CPU, 1, None)
    texts = ["what is gravity", "the capital of China"]
    load = Workload("b", "", texts, "query")
    prompt = len(setup.tokenize([""], "query")[0]) - 1
    ids = setup.tokenize(texts, "query")
    found = limits.workload_cost(setup, load)
    assert found.tokens_requested == sum(map(len, ids))
    assert found.tokens == work(ids).tokens - prompt
    single = limits.workload_cost(setup, Workload("c", "", texts, "query", one_by_one=True))
    assert len(single.call_flops) == 2
    assert single.tokens == sum(len(each) - prompt for each in ids)
    document = limits.workload_cost(setup, Workload("a", "", texts, "document"))
    assert document.tokens == document.tokens_requested


def test_the_limit_is_the_larger_of_both() -> None:
    config = config_with()
    bytes_ = 4 * 2 * (64 * 4 * 32 * 2 + 64 * 2 * 32 * 2 + 3 * 64 * 96)  # 4 bytes, 2 layers
    assert limits.weight_bytes(config, "fp32") == bytes_
    assert limits.weight_bytes(config, "bf16") == bytes_ // 2
    rates = Rates({"fp32": 1e9}, float(bytes_))  # the weights in 1 s, 1e9 operations in 1 s
    read = (3.0, "weights")
    assert limits.limit(WorkloadCost(0, 0, [10, 10, 10]), config, "fp32", rates) == read
    assert limits.limit(WorkloadCost(0, 0, [4_000_000_000]), config, "fp32", rates) == (
        4.0,
        "matmul",
    )


def test_time_left() -> None:
    schedule = Schedule()
    schedule.add(("fp32", "a", "x"), 10.0, times=3)
    schedule.add(("fp32", "b", "x"), 100.0)
    assert schedule.seconds_left() == 130.0
    schedule.done(("fp32", "a", "x"), 20.0)
    assert schedule.seconds_left() == 140.0
    schedule.drop("fp32", "b")
    assert schedule.time_left() == "about 40 s left"
    assert duration(600) == "about 10 min"


def test_lastword_that_dies_is_one_line(tiny_checkpoint: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    words = ["bench", "peers", "--beside", ST, "--threads", "1", "--precisions", "fp32"]
    assert main([*words, "--model", str(tmp_path)]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("lastword: lastword: it failed (")
