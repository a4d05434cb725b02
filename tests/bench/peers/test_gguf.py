"""The GGUF file: every setting and every number of the checkpoint, read back by gguf's own reader."""

from pathlib import Path

import pytest
import torch

from lastword.bench.checkpoint import make_checkpoint
from lastword.bench.peers.gguf import refusal, write_gguf
from lastword.errors import ConfigError
from lastword.weights import Checkpoint, read_config

TOKENS = [3, 7, 8, 300, 509]
NAMES = {
    "input_norm": "attn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "post_norm": "ffn_norm",
    "down": "ffn_down",
}


def make(folder: Path, **changes: object) -> Path:
    return make_checkpoint(folder, hidden_size=48, intermediate_size=80, rope_theta=5e5, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="fp32"),
        pytest.param({"dtype": torch.bfloat16, "shards": 2, "prefix": "model."}, id="bf16-shards"),
        pytest.param({"tied": False, "prefix": "model."}, id="lm-head"),
    ],
)
def test_contents(changes: dict[str, object], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    folder = make(tmp_path / "model", **changes)
    write_gguf(folder, tmp_path / "model.gguf", TOKENS)
    file = gguf.GGUFReader(tmp_path / "model.gguf")

    fields = {name: field.contents() for name, field in file.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert fields["tokenizer.ggml.model"] == "none"
    assert {name.removeprefix("qwen3."): v for name, v in fields.items() if "qwen3." in name} == {
        "vocab_size": len(TOKENS),
        "context_length": 4096,
        "embedding_length": 48,
        "block_count": 2,
        "feed_forward_length": 80,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.freq_base": 5e5,
        "pooling_type": gguf.PoolingType.LAST,
    }

    ours = Checkpoint(folder, read_config(folder))
    expected = {"token_embd": ours.embedding()[TOKENS], "output_norm": ours.norm()}
    for index in range(2):
        layer = ours.layer(index, torch.float32)
        parts = {theirs: getattr(layer, name) for name, theirs in NAMES.items()}
        q, k, v = layer.qkv.split([4 * 32, 2 * 32, 2 * 32])
        parts |= {"attn_q": q, "attn_k": k, "attn_v": v, "ffn_gate": layer.gate, "ffn_up": layer.up}
        expected |= {f"blk.{index}.{name}": tensor for name, tensor in parts.items()}
    found = {tensor.name: torch.tensor(tensor.data) for tensor in file.tensors}
    assert found.keys() == {f"{name}.weight" for name in expected}
    for name, tensor in expected.items():
        assert found[f"{name}.weight"].dtype == torch.float32
        assert torch.equal(found[f"{name}.weight"], tensor.float()), name


@pytest.mark.parametrize(
    ("precision", "kind", "allowed"),
    [pytest.param("bf16", "BF16", 2**-8), pytest.param("8bit", "Q8_0", 2**-6)],
)
def test_matrices_of_fewer_bits(
    precision: str, kind: str, allowed: float, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Every matrix is rounded, the embedding table included; norms are not."""
    gguf = pytest.importorskip("gguf")
    write_gguf(tiny_checkpoint, tmp_path / "model.gguf", TOKENS, precision)
    file = gguf.GGUFReader(tmp_path / "model.gguf")
    assert gguf.LlamaFileType(file.fields["general.file_type"].contents()).name.endswith(kind)
    layer = Checkpoint(tiny_checkpoint, read_config(tiny_checkpoint)).layer(0, torch.float32)
    found = {tensor.name: tensor for tensor in file.tensors}
    for name, tensor in found.items():
        assert tensor.tensor_type.name == ("F32" if "norm" in name else kind), name
    for name, expected in (("ffn_down", layer.down), ("attn_output", layer.o)):
        tensor = found[f"blk.0.{name}.weight"]
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        difference = (values.view_as(expected) - expected).abs().max()
        assert 0 < difference <= allowed * expected.abs().max()


def test_rows_that_do_not_divide_are_refused_in_8_bits_only(tmp_path: Path) -> None:
    config = read_config(make(tmp_path / "model", weights=False))  # hidden size 48
    assert refusal(config) is None
    assert refusal(config, "bf16") is None
    assert refusal(config, "8bit") == "rows of 48 numbers, not a multiple of 32"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"attention_bias": True}, "attention_bias", id="biases"),
        pytest.param({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn", id="yarn"),
    ],
)
def test_what_is_not_written_is_refused(
    changes: dict[str, object], word: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "model", weights=False, **changes)
    with pytest.raises(ConfigError) as caught:
        write_gguf(folder, tmp_path / "model.gguf", TOKENS)
    error = caught.value
    assert (error.where, error.what) == (f"{folder}/config.json", "cannot be written to GGUF")
    assert word in error.got
    assert not (tmp_path / "model.gguf").exists()
