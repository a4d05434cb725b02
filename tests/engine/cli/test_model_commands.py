"""The commands on a real, tiny model: they write the vectors that `Embedder` computes."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.messages import TEXTS, one_line
from helpers.small_models import INSTRUCTION, make_reranker
from safetensors import safe_open

from lastword.cli.commands import info
from lastword.embedder import Embedder
from lastword.model import prompt_cache
from lastword.model.qwen3 import Model
from lastword.model_info import ModelInfo


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary", "ubinary"])
def test_embed_writes_the_vectors_of_the_embedder(run, tiny_checkpoint, precision):
    model = Embedder(tiny_checkpoint, truncate_dim=32)
    expected = model.encode(TEXTS, prompt="find: ", precision=precision)
    common = ("texts.txt", "--model", tiny_checkpoint, "--dim", 32, "--prompt", "find: ")
    common = (*common, "--precision", precision)
    status, out, err = run("embed", *common)
    assert status == 0
    assert "5 texts" in err
    assert "saved by sharing" in err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    printed = torch.tensor([row["embedding"] for row in rows]).to(expected.dtype)
    torch.testing.assert_close(printed, expected, atol=1e-6, rtol=0)
    for name in ("v.safetensors", "v.npy", "v.jsonl"):
        assert run("embed", *common, "-o", name, "--quiet") == (0, "", "")
    assert Path("v.jsonl").read_text(encoding="utf-8") == out
    facts = json.loads(Path("v.jsonl.json").read_text())
    assert facts["space"] == model.info.space_fingerprint()
    assert facts["run"] == model.info.run_fingerprint("find: ", precision)
    assert json.loads(Path("v.npy.json").read_text()) == facts
    with safe_open("v.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("embedding"), printed)
        assert file.metadata() == {name: str(value) for name, value in facts.items()}
        assert file.metadata()["dim"] == "32"
        assert file.metadata()["prompt"] == "find: "
    assert np.array_equal(np.load("v.npy"), printed.numpy())


def test_the_same_run_gives_the_same_file(run, tiny_checkpoint):
    for name in ("a.safetensors", "b.safetensors"):
        assert run("embed", "texts.txt", "--model", tiny_checkpoint, "-o", name)[0] == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_ranges_go_from_one_run_to_the_next(run, tiny_checkpoint):
    common = ("texts.txt", "--model", tiny_checkpoint)
    assert run("embed", *common, "--save-ranges", "r.st", "-o", "a.npy")[0] == 0
    assert run("embed", *common, "--precision", "uint8", "--ranges", "r.st", "-o", "b.npy")[0] == 0
    codes = np.load("b.npy")
    assert codes.dtype == np.uint8
    assert (codes.min(axis=0) <= 1).all()
    assert (codes.max(axis=0) >= 254).all()
    result = run("embed", *common, "--dim", 16, "--precision", "int8", "--ranges", "r.st")
    one_line(result, "r.st", "expected [2, 16]")


def test_search_ranks_as_similarity_does(run, tiny_checkpoint):
    model = Embedder(tiny_checkpoint)
    scores = model.similarity(
        model.encode_query(["the cat"]), model.encode_document(TEXTS)
    ).flatten()
    texts = [i for i, text in enumerate(TEXTS) if text]  # a blank one is skipped
    order = sorted(texts, key=lambda i: (-round(scores[i].item(), 6), i))
    status, out, _ = run("search", "the cat", "texts.txt", "--model", tiny_checkpoint, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [row["line"] - 1 for row in rows] == order
    for row, index in zip(rows, order, strict=True):
        assert abs(row["score"] - scores[index].item()) < 1e-5


def test_info_describes_the_model(run, tiny_checkpoint):
    model = Embedder(tiny_checkpoint)
    status, out, err = run("info", tiny_checkpoint, "--json", "--full")
    facts = json.loads(out)
    assert (status, err) == (0, "")
    assert (facts["kind"], facts["dim"]) == ("embedding model", model.dim)
    assert facts["space"] == model.info.space_fingerprint()
    assert facts["prompts"] == model.prompts
    assert facts["config"]["hidden_size"] == 64
    assert facts["parameters"] > 0
    hashes = {each["file"]: each["sha256"] for each in facts["files"]}
    weights = (tiny_checkpoint / "model.safetensors").read_bytes()
    assert hashes["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert {"config.json", "tokenizer.json"} < hashes.keys()
    assert facts["quantize"] is None
    status, out, _ = run("info", "--model", tiny_checkpoint, "--quantize", "int8")
    assert status == 0
    assert re.search(r"^quantize +int8$", out, re.MULTILINE)
    assert facts["run"] not in out
    assert model.info.space_fingerprint() in out
    assert max(map(len, out.splitlines())) < 400


def test_the_table_of_info_is_no_json(run, tiny_checkpoint):
    model = ModelInfo(tiny_checkpoint)
    out = run("info", tiny_checkpoint)[1]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for name, prompt in model.prompts.items():
        shown = " ".join(prompt.replace("\n", "\\n").split())
        assert any(line.startswith(f'{name} "{shown}') and line.endswith('"') for line in lines), (
            name
        )
    assert not any(character in out for character in "{}[]")
    assert any(re.fullmatch(r"  rope:|    theta +[\d.,]+", line) for line in out.splitlines())


def test_the_table_of_info_has_a_line_per_notice():
    facts = {"notices": ["one", "two"], "prompts": {}, "config": {"rope": {"theta": 1.0, "f": 0.0}}}
    lines = [" ".join(line.split()) for line in info._table(facts)]
    assert lines == [
        "notices one",
        "notices two",
        "prompts none",
        "config:",
        "rope:",
        "theta 1.0",
        "f 0.0",
    ]


def test_info_tells_what_is_kept_of_prompts(run, tiny_checkpoint):
    found = json.loads(run("info", tiny_checkpoint, "--json")[1])["prompt_cache"]
    model = Embedder(tiny_checkpoint, device="cpu")
    assert found["max_prompt_tokens"] == model.loop.runner.max_prompt_tokens
    assert (found["max_prompts"], found["max_bytes"]) == (prompt_cache.MAX_PROMPTS, 256 << 20)
    prompt = "the cat sat on the mat and " * 4
    model.encode("x", prompt=prompt)
    (kept,) = model.loop.runner._model.prompts._kept.values()
    tokens = kept.layers[0].shape[0]
    assert kept.nbytes == tokens * found["bytes_per_token"]
    assert "prompt_cache:\n" in run("info", tiny_checkpoint)[1]


def test_info_describes_a_reranker(run, tmp_path):
    folder = make_reranker(tmp_path / "reranker", "untied")
    status, out, err = run("info", folder, "--json")
    facts = json.loads(out)
    assert (status, err, facts["kind"], facts["head"]) == (0, "", "reranker", "lm_head")
    assert (facts["score"], facts["instruction"]) == ("probability", INSTRUCTION)
    assert not {"dim", "space", "run"} & facts.keys()
    status, _, err = run("info", folder, "--dim", 8)
    assert status == 2
    assert "--dim: is for embedding models only; got 8, expected none" in err


def test_info_loads_no_weights(run, tiny_checkpoint, monkeypatch):
    expected = run("info", tiny_checkpoint, "--max-length", 50)
    monkeypatch.setattr(Model, "__init__", lambda *_, **__: pytest.fail("loads the weights"))
    assert run("info", tiny_checkpoint, "--max-length", 50) == expected
    assert "max_length                   50\n" in expected[1]
    facts = json.loads(run("info", tiny_checkpoint, "--device", "cpu,cpu", "--json")[1])
    assert facts["device"] == "cpu, cpu"


def test_info_computes_nothing_so_it_has_no_batch_size(run, tiny_checkpoint):
    status, out, err = run("info", tiny_checkpoint, "--max-batch-tokens", 9)
    assert (status, out) == (2, "")
    assert "info: unknown argument; got --max-batch-tokens." in err
    assert "--max-batch-tokens" not in run("info", "--help")[1]
    assert "--max-batch-tokens" in run("embed", "--help")[1]


@pytest.fixture
def not_normalized(tmp_path, tiny_checkpoint):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "states"))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    return folder


def test_normalize_changes_the_space(run, not_normalized):
    model = Embedder(not_normalized)
    found, vectors = {}, {}
    for options in ((), ("--normalize",)):
        out = run("embed", "texts.txt", "--model", not_normalized, "--header", *options)[1]
        header, row = map(json.loads, out.splitlines()[:2])
        found[options], vectors[options] = header["lastword"], torch.tensor(row["embedding"])
    assert not torch.allclose(vectors[()].norm(), torch.ones(()), atol=1e-3)
    expected = model.encode(TEXTS[0], normalize_embeddings=True)
    torch.testing.assert_close(vectors[("--normalize",)], expected, atol=1e-6, rtol=0)
    assert found[()]["space"] == model.info.space_fingerprint()
    asked = model.info.space_fingerprint(normalize_embeddings=True)
    assert found[("--normalize",)]["space"] == asked
    assert found[()]["run"] != found[("--normalize",)]["run"]


@pytest.fixture
def hub_snapshot(tmp_path, tiny_checkpoint):
    """The model in the layout of a hub cache: links to blobs that are named by their hashes."""
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/1"
    blobs.mkdir(parents=True)
    for path in sorted(path for path in tiny_checkpoint.rglob("*") if path.is_file()):
        content = path.read_bytes()
        name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if path.suffix == ".safetensors":
            name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        link = snapshot / path.relative_to(tiny_checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / name, link.parent))
    return snapshot


def test_full_info_finds_one_flipped_bit(run, hub_snapshot):
    status, out, err = run("info", hub_snapshot, "--full")
    assert (status, err) == (0, "")
    assert "matches the hub" in out
    for name in ("model.safetensors", "config.json"):
        blob = (hub_snapshot / name).resolve()
        content = bytearray(blob.read_bytes())
        content[-3] ^= 1
        blob.write_bytes(content)
        result = run("info", hub_snapshot, "--full", "--json")
        one_line(result, name, "does not match", status=1)
        assert json.loads(result[1])["damaged"] == [name]
        content[-3] ^= 1
        blob.write_bytes(content)


SETTINGS = {
    "dim-too-large": (["--dim", 65], ["--dim", "65", "64"]),
    "prompt-unknown": (["--prompt-name", "poem"], ["--prompt-name: ", "'poem'", "query"]),
    "max-length-too-large": (["--max-length", 10**9], ["--max-length: out of range"]),
    "device-unknown": (["--device", "gpu9"], ["gpu9"]),
    "dtype-unknown": (["--dtype", "float8"], ["float8"]),
    "quantize-unknown": (["--quantize", "fp4"], ["--quantize", "'fp4'", "int8"]),
    "fp8-on-a-cpu": (["--quantize", "fp8", "--device", "cpu"], ["--quantize", "'cpu'", "int8"]),
    "int8-in-bf16": (["--quantize", "int8", "--dtype", "bfloat16"], ["--quantize", "bfloat16"]),
    "binary-odd-dim": (["--dim", 63, "--precision", "binary"], ["63"]),
}


@pytest.mark.parametrize(("arguments", "expected"), SETTINGS.values(), ids=SETTINGS.keys())
def test_refused_settings(run, tiny_checkpoint, arguments, expected):
    result = run("embed", "texts.txt", "--model", tiny_checkpoint, *arguments, "-o", "out.jsonl")
    one_line(result, *expected)
    assert os.listdir() == ["texts.txt"]


def test_a_too_long_text_is_named_or_cut(run, tiny_checkpoint):
    Path("texts.txt").write_text("a\n" + "the cat sat on the mat " * 9 + "\n\n")
    common = ("texts.txt", "--model", tiny_checkpoint, "--max-length", 8)
    one_line(run("embed", *common, "--on-long", "error", "-o", "out"), "texts.txt:2: too long")
    assert os.listdir() == ["texts.txt"]
    status, out, err = run("embed", *common)
    assert (status, out.count("\n")) == (0, 3)
    assert "1 text cut" in err


def test_as_a_process_stderr_is_clean(run, tiny_checkpoint):
    command = [sys.executable, "-m", "lastword.cli.main", "embed", "texts.txt", "--quiet"]
    command += ["--model", str(tiny_checkpoint)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == len(TEXTS)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_batch_without_memory_is_one_line(run, tiny_checkpoint, monkeypatch, quiet):
    forward, room = Model.forward, max(map(len, Embedder(tiny_checkpoint).token_ids(TEXTS)))

    def small(model, forest, *others):
        if forest.tokens_computed > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, forest, *others)

    monkeypatch.setattr(Model, "forward", small)
    words = ["texts.txt", "--model", tiny_checkpoint, "--device", "cpu"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, out, err = run("embed", *words, *["--quiet"][:quiet])
    assert (status, out.count("\n")) == (0, len(TEXTS))
    if quiet:
        assert err == ""
        return
    warning, blank, report = err.splitlines()
    assert blank.startswith("lastword: 1 blank text embedded too")
    assert re.match(
        r"lastword: --max-batch-tokens: cpu is out of memory at \d+ tokens per batch;", warning
    )
    assert report.startswith("lastword: 5 texts, ")


@pytest.mark.parametrize(
    "name", ["v.safetensors", "v.npy", "v.npy.json", "v.jsonl", "v.jsonl.json"]
)
def test_info_says_what_a_file_of_vectors_is_of(run, tiny_checkpoint, name):
    assert (
        run("embed", "texts.txt", "--model", tiny_checkpoint, "-o", name.removesuffix(".json"))[0]
        == 0
    )
    status, out, err = run("info", name)
    assert (status, out) == (2, "")
    space = ModelInfo(tiny_checkpoint).space_fingerprint()
    said = f"got {len(TEXTS)} texts, 64 dimensions, model {tiny_checkpoint}, space {space}"
    assert err.startswith(f"lastword: {name}: holds vectors, not a model; ")
    assert said in err


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"texts": 1}', '{"texts": 1, "dim": 1, "model": 1}', "[" * 100_000],
    ids=range(6),
)
@pytest.mark.parametrize("name", ["a.json", "a.npy", "a.safetensors"])
def test_info_of_another_file(run, name, content):
    Path(name).write_text(content)
    Path("a.npy.json").write_text(content)
    assert (
        run("info", name)[2]
        == f"lastword: {name}: is a file; expected a folder. Name the folder that contains it.\n"
    )
