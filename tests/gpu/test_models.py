"""Whole models on the device beside transformers: published shapes, random weights made there."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lastword import Embedder
from lastword.batching.forest import plan_forests
from lastword.bench.shapes import SIZES
from lastword.model.qwen3 import Model
from lastword.weights import LayerWeights
from lastword.weights.config import parse_config

GPU = torch.device("cuda")
DRAW = random.Random(0)
TOKENS = [
    *([7] * 24 + [DRAW.randrange(1000) for _ in range(12)] for _ in range(40)),
    *([DRAW.randrange(1000) for _ in range(n)] for n in (1, 2, 16, 63, 128, 129, 500, 1500)),
]


def make_theirs(model: str, layers: int) -> torch.nn.Module:
    """transformers' model in fp32 on the device, its weights of a trained model's size."""
    from transformers import Qwen3Config, Qwen3Model

    hidden, width, _, H, KH, D = SIZES[model]
    config = Qwen3Config(
        hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=H,
        num_key_value_heads=KH, head_dim=D, vocab_size=1000, max_position_embeddings=32768,
        attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(GPU):
        made = Qwen3Model(config).eval()
        for name, tensor in made.named_parameters():
            if name.endswith("norm.weight"):
                tensor.data.normal_(1.0, 0.1)
            elif name.endswith("proj.weight"):
                tensor.data.normal_(0.0, tensor.shape[1] ** -0.5)
            else:
                tensor.data.normal_(0.0, 0.5)
    return made


def in_bfloat16(theirs: torch.nn.Module) -> torch.nn.Module:
    """Their model as it is loaded in bfloat16: `to` alone would round the frequencies of the rotation too."""
    theirs = theirs.to(torch.bfloat16)
    theirs.rotary_emb = type(theirs.rotary_emb)(theirs.config).to(GPU)
    return theirs


class Weights:
    """Their parameters, read as a checkpoint."""

    def __init__(self, theirs: torch.nn.Module) -> None:
        self.theirs = theirs

    def embedding(self) -> torch.Tensor:
        return self.theirs.embed_tokens.weight.data

    def norm(self) -> torch.Tensor:
        return self.theirs.norm.weight.data

    def layer(self, index: int, dtype: torch.dtype) -> LayerWeights:
        layer = self.theirs.layers[index]
        a, m = layer.self_attn, layer.mlp
        return LayerWeights(
            input_norm=layer.input_layernorm.weight.data,
            qkv=torch.cat([p.weight.data for p in (a.q_proj, a.k_proj, a.v_proj)]),
            qkv_bias=None,
            q_norm=a.q_norm.weight.data,
            k_norm=a.k_norm.weight.data,
            o=a.o_proj.weight.data,
            o_bias=None,
            post_norm=layer.post_attention_layernorm.weight.data,
            gate=m.gate_proj.weight.data,
            up=m.up_proj.weight.data,
            down=m.down_proj.weight.data,
        )


def ours(theirs: torch.nn.Module, dtype: torch.dtype) -> Model:
    values = theirs.config.to_dict()
    config = parse_config(
        {
            name: values[name]
            for name in (
                "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps",
                "hidden_act", "attention_bias",
            )
        } | {"rope_theta": 10_000.0, "rope_scaling": None, "tie_word_embeddings": True},
        "made config",
    )  # fmt: skip
    return Model(Weights(theirs), config, GPU, dtype)  # type: ignore[arg-type]


@torch.inference_mode()
def their_vectors(model: torch.nn.Module, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    states = [
        model(torch.tensor([list(ids)], device=GPU)).last_hidden_state[0, -1] for ids in tokens
    ]
    return unit(torch.stack(states))


def our_vectors(
    model: Model, tokens: Sequence[Sequence[int]], *, share: bool = True
) -> torch.Tensor:
    out = torch.empty(len(tokens), model.config.hidden_size, device=GPU)
    for forest in plan_forests(tokens, 4096, share=share):
        states = model.forward(forest).float()
        out[forest.texts.to(GPU)] = states[forest.distinct.to(GPU)]
    return unit(out)


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1)


@pytest.mark.parametrize(("model", "layers"), [("0.6B", 28), ("4B", 12), ("8B", 6)])
def test_models_as_transformers(model: str, layers: int) -> None:
    theirs = make_theirs(model, layers)
    truth = their_vectors(theirs, TOKENS)
    mine = our_vectors(ours(theirs, torch.float32), TOKENS)
    assert float((mine - truth).abs().max()) <= 2e-5
    mine = our_vectors(ours(theirs, torch.bfloat16), TOKENS)
    alone = our_vectors(ours(theirs, torch.bfloat16), TOKENS, share=False)
    rounded = their_vectors(in_bfloat16(theirs), TOKENS)
    allowed = 1.2 * (rounded - truth).square().mean().sqrt()
    assert (mine - truth).square().mean().sqrt() <= allowed
    assert (alone - truth).square().mean().sqrt() <= allowed


def test_a_text_of_32k_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    # Grouped heads in fp32 would take the form of SDPA that writes out all scores: 128 GiB.
    monkeypatch.setattr(
        "transformers.integrations.sdpa_attention.use_gqa_in_sdpa", lambda *_: False
    )
    theirs = make_theirs("4B", 2)
    tokens = [[DRAW.randrange(1000) for _ in range(32_768)]]
    model = ours(theirs, torch.bfloat16)
    truth = their_vectors(theirs, tokens)
    rounded = their_vectors(in_bfloat16(theirs), tokens)
    del theirs
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mine = our_vectors(model, tokens)
    used = torch.cuda.max_memory_allocated() - before
    assert used < 16 * 2**30, f"{used / 2**30:.1f} GiB beside the weights"
    error = (mine - truth).square().mean().sqrt()
    assert error <= 1.2 * (rounded - truth).square().mean().sqrt() + 1e-4


def test_the_public_call(tiny_checkpoint: Path) -> None:
    texts = ["The capital of China is Beijing.", "", "x", "gravity " * 400]
    on_cpu = Embedder(tiny_checkpoint, device="cpu").encode(texts)
    exact = Embedder(tiny_checkpoint, device="cuda", dtype="float32").encode(texts)
    assert float((exact - on_cpu).abs().max()) <= 2e-5
    rounded = Embedder(tiny_checkpoint, device="cuda").encode(texts)
    assert (rounded.dtype, rounded.device.type) == (torch.float32, "cpu")
    assert float((rounded * on_cpu).sum(1).min()) > 0.99
