"""A merge holds only a few blocks in memory, however large a tensor is; planning bags holds no rows.

The tensors are 1.5 GB each, in sparse files.
"""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.project import peak_anonymous

from lastword.bench.checkpoint import make_checkpoint
from lastword.bench.merge import multislerp
from lastword.weights import Checkpoint, read_config
from lastword.weights.tensor_names import expected_shapes

ROWS, WIDTH, FILLED = 151_936, 2560, 64
PLACES = (0, ROWS // 2, ROWS - FILLED)
LIMIT = 300_000_000


def sparse_model(folder: Path, seed: int) -> str:
    """A model with the real vocabulary and width; only some rows of its embedding are not zero."""
    make_checkpoint(folder, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"vocab_size": ROWS, "hidden_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(settings))
    pooling = folder / "1_Pooling/config.json"
    values = json.loads(pooling.read_text())
    pooling.write_text(json.dumps(values | {"word_embedding_dimension": WIDTH}))
    header, end = {}, 0
    for name, shape in expected_shapes(read_config(folder)).items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    start = 8 + len(raw) + header["embed_tokens.weight"]["data_offsets"][0]
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
        for place in PLACES:
            file.seek(start + place * WIDTH * 4)
            file.write(bytes(rows(seed, place).view(torch.uint8).flatten().tolist()))
    return str(folder)


def rows(seed: int, place: int) -> torch.Tensor:
    return torch.randn(FILLED, WIDTH, generator=torch.Generator().manual_seed(seed + place))


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_large_merge(tmp_path):
    models = [sparse_model(tmp_path / f"m{i}", seed=i) for i in (1, 2)]
    listed = "".join(
        f"- {{model: {name}, parameters: {{weight: {i}}}}}\n" for i, name in enumerate(models, 1)
    )
    config = tmp_path / "merge.yaml"
    config.write_text(f"merge_method: multislerp\nmodels:\n{listed}dtype: float32\n")
    command = [
        sys.executable,
        "-m",
        "lastword.cli.main",
        "merge",
        str(config),
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        peak = peak_anonymous(process)
        assert process.returncode == 0, process.stderr.read()
    assert peak < LIMIT, f"{peak:,} bytes beyond mapped files and the page cache"
    out = Checkpoint(tmp_path / "out", read_config(tmp_path / "out"))
    assert out.num_bytes > 1.5e9
    parts = [torch.cat([rows(seed, place) for place in PLACES]) for seed in (1, 2)]
    expected = multislerp(parts, [1, 2]).float()  # the zeros of the other rows change nothing
    embedding = out.embedding()
    for i, place in enumerate(PLACES):
        got = embedding[place : place + FILLED]
        assert torch.allclose(got, expected[i * FILLED : (i + 1) * FILLED], rtol=1e-6, atol=0)
    assert not embedding[FILLED : PLACES[1]].any()


def peak_of_bags(rows: int, folder: Path) -> int:
    """Return the peak memory in bytes of planning over `rows` rows."""
    text = b'{"text": "a row of some length", "id": 123456}\n'
    with (folder / f"{rows}.jsonl").open("wb") as file:
        for _ in range(rows // 10_000):
            file.write(text * 10_000)
    words = ["bags", f"{rows}.jsonl", "--ratios", "80,rest", "--seed", "1", "-o", f"p{rows}.json"]
    command = [sys.executable, "-m", "lastword.cli.main", *words, "--quiet"]
    with subprocess.Popen(command, cwd=folder) as process:
        peak = peak_anonymous(process)
    assert process.returncode == 0
    plan = json.loads((folder / f"p{rows}.json").read_text())
    assert [bag["rows"] for bag in plan["bags"]] == [rows * 8 // 10, rows * 2 // 10]
    return peak


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("rows", [500_000, pytest.param(10_000_000, marks=pytest.mark.soak)])
def test_planning_bags_takes_the_same_memory_for_more_rows(tmp_path, rows):
    assert peak_of_bags(rows, tmp_path) < peak_of_bags(10_000, tmp_path) + 8_000_000
