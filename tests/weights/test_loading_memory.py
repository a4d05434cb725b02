"""Opening reads no tensor data, and loading needs no more memory than the caller's own and one tensor."""

import json
import sys

import pytest
import torch
from helpers.project import numbers_of

from lastword.bench.checkpoint import make_checkpoint
from lastword.weights import Checkpoint, read_config
from lastword.weights.tensor_names import expected_shapes


def test_no_payload_is_read_on_opening(tmp_path):
    """A sparse file of 40 GB of weights is more than many machines can map at once."""
    folder = make_checkpoint(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 65}
    (folder / "config.json").write_text(json.dumps(settings))
    config = read_config(folder)
    header, end = {}, 0
    for name, shape in expected_shapes(config).items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    checkpoint = Checkpoint(folder, config)
    assert checkpoint.num_bytes > 39e9
    assert checkpoint.embedding()[-1, -1] == 0  # mapped, not read
    assert checkpoint.norm().sum() == 0
    assert len(checkpoint.fingerprint) == 64


LOADING = """
import sys
from pathlib import Path
import torch
from lastword.runtime import process_tuning
from lastword.bench.memory import held_bytes, watch_peak
from lastword.weights import Checkpoint, read_config

config = read_config(Path(sys.argv[1]))
checkpoint = Checkpoint(Path(sys.argv[1]), config)
checkpoint.layer(0, torch.float32)  # what torch allocates once
torch.zeros(1).copy_(torch.ones(1))
keep = sys.argv[2] == "keep"
base = held_bytes("VmRSS")
with process_tuning.tune_for_loading(), watch_peak("VmRSS", every=0.0005) as peak:
    embedding = checkpoint.embedding().to(torch.float32) if keep else None
    layers = []
    for index in range(config.num_hidden_layers):
        layer = checkpoint.layer(index, torch.float32)
        if keep:
            layers.append(layer)
        del layer
held = [getattr(each, name) for each in layers for name in each.__slots__] + [embedding]
print(peak() - base, sum(tensor.nbytes for tensor in held if tensor is not None))
"""


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_resident_memory_is_bounded_while_loading(tmp_path, mode):
    """Allowed in addition to the kept tensors: one layer if none is kept, and 12 MiB for allocator and threads."""
    folder = make_checkpoint(
        tmp_path,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=24,
        num_attention_heads=8,
        head_dim=64,
        vocab_size=20_000,
        dtype=torch.bfloat16,
    )
    grown, held = numbers_of(LOADING, folder, mode)
    checkpoint = Checkpoint(folder, read_config(folder))
    largest = 20_000 * 512 * 2
    assert checkpoint.num_bytes > 80e6
    layer = (checkpoint.num_bytes - largest) // 24 * 2  # in fp32
    assert grown <= (held if mode == "keep" else layer) + 12 * 2**20
