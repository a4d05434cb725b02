"""The forward compared with transformers' Qwen3Model in fp32: shapes, depths, lengths, configs, storage dtypes."""

import random
from pathlib import Path

import pytest
import torch
from helpers.transformers_reference import (
    TOLERANCE,
    difference,
    first_wrong_layer,
    load_ours,
    load_theirs,
    our_states,
    their_states,
)

from lastword.bench.checkpoint import make_checkpoint

SMALL = {
    "hidden_size": 80, "intermediate_size": 136, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "vocab_size": 512,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, dict] = {
    "H6-KH3-D32-C80": {},
    "G1-D16": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "hidden_size": 40},
    "G4-D64": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 96},
    "G8-D16-C72": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16, "hidden_size": 72},
    "untied": {"tied": False},
    "L1": {"num_hidden_layers": 1},
    "L7": {"num_hidden_layers": 7},
    "L36": {"num_hidden_layers": 36},
    "theta1e4": {"rope_theta": 1e4},
    "theta5e6": {"rope_theta": 5e6},
    "yarn": {"rope_scaling": YARN},
    "yarn-v5": {"rope_scaling": YARN, "config_format": "v5"},
    "yarn-attention-factor": {"rope_scaling": {**YARN, "attention_factor": 0.9, "beta_fast": 16.0}},
    "biases": {"attention_bias": True},
    "config-v5": {"config_format": "v5"},
    "prefixed": {"prefix": "model."},
    "sharded": {"shards": 3},
    "bf16-stored": {"dtype": torch.bfloat16},
    "fp16-stored": {"dtype": torch.float16},
}  # fmt: skip
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]


def random_tokens(lengths: list[int], vocab: int = 512, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(vocab) for _ in range(length)] for length in lengths]


def assert_parity(folder: Path, tokens: list[list[int]], **options: object) -> None:
    theirs, their_layers = their_states(load_theirs(folder), tokens)
    ours, our_layers = our_states(load_ours(folder), tokens, **options)
    apart = difference(ours, theirs)
    assert apart <= TOLERANCE, f"{apart:.2e}; {first_wrong_layer(our_layers, their_layers)}"


@pytest.mark.parametrize("case", CASES)
def test_every_shape_and_storage(case: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, **{**SMALL, **CASES[case]})
    assert_parity(folder, random_tokens(LENGTHS))


def test_long_texts(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, **SMALL, max_position_embeddings=4096)
    assert_parity(folder, random_tokens([1000, 1023, 1025, 2049]), budget=1500)


@pytest.mark.parametrize("length", [1, 2, 16, 33, 128])
def test_equal_lengths(length: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, **SMALL)
    assert_parity(folder, random_tokens([length] * 9))


def test_shared_prefixes_and_duplicates(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, **SMALL)
    prompt, *tails = random_tokens([24, 5, 5, 17, 40, 1, 300])
    tokens = [prompt + tail for tail in tails]
    tokens += [tokens[3] + tail for tail in tails] + [prompt, tokens[0], tokens[3][:30]]
    assert_parity(folder, tokens)


@pytest.mark.timing
def test_on_two_threads(two_threads: None, tmp_path: Path) -> None:
    """Run alone: threads that share their cores with another test worker take many times as long."""
    folder = make_checkpoint(tmp_path, **SMALL, max_position_embeddings=4096)
    prompt, *tails = random_tokens([24, 1, 17, 300])
    tokens = [*random_tokens([*LENGTHS, 1025]), prompt, *(prompt + tail for tail in tails)]
    assert_parity(folder, tokens, budget=1500)
    model = load_ours(folder)
    shared, _ = our_states(model, tokens)
    alone, _ = our_states(model, tokens, budget=50, share=False)
    assert difference(shared, alone) <= 1e-5


@pytest.mark.parametrize("case", ["H6-KH3-D32-C80", "biases", "yarn"])
def test_each_layer(case: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, **{**SMALL, "num_hidden_layers": 5, **CASES[case]})
    tokens = random_tokens([3, 40, 129])
    _, theirs = their_states(load_theirs(folder), tokens)
    _, ours = our_states(load_ours(folder), tokens)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert difference(a, b) <= TOLERANCE, f"layer {i}"
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4), f"layer {i} has another length"


def test_a_text_of_32768_tokens(tmp_path: Path) -> None:
    """The longest text that the models are made for; transformers' fused attention is the reference."""
    from transformers import Qwen3Model

    folder = make_checkpoint(tmp_path, **SMALL, max_position_embeddings=32_768)
    (tokens,) = random_tokens([32_768])
    theirs = Qwen3Model.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    expected, _ = their_states(theirs.eval(), [tokens])
    ours, _ = our_states(load_ours(folder), [tokens], budget=len(tokens))
    assert difference(ours, expected) <= TOLERANCE
