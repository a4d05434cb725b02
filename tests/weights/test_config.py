"""config.json: what real writers produce is read in full; what lastword does not implement is named."""

import copy
import json
import math

import pytest
import torch

from lastword.errors import ConfigError, WeightsError
from lastword.weights import ModelConfig, read_config

# The published 0.6B embedding model, as transformers 4.51 wrote it.
REAL = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151669,
}
DROP = object()
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def changed(changes: dict) -> dict:
    values = copy.deepcopy(REAL) | changes
    return {key: value for key, value in values.items() if value is not DROP}


def read(tmp_path, changes: dict) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(changed(changes)))
    return read_config(tmp_path)


def test_real_file(tmp_path):
    config = read(tmp_path, {})
    assert (config.hidden_size, config.head_dim, config.vocab_size) == (1024, 128, 151669)
    assert (config.rope.theta, config.rope.kind, config.rms_norm_eps) == (1e6, "default", 1e-6)
    assert config.rope.attention_factor == 1.0


V5 = {"rope_theta": DROP, "rope_scaling": DROP}


@pytest.mark.parametrize(
    "changes",
    [
        V5 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        V5 | {"rope_parameters": {"rope_theta": 1e6}, "dtype": "bfloat16", "torch_dtype": DROP},
        V5 | {"rope_parameters": {"rope_type": "default"}, "rope_theta": 1e6},
        V5 | {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        {"rope_theta": 5e6, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_scaling": {"type": "default", "factor": None}},
        {"layer_types": ["full_attention"] * 28, "pad_token_id": None},
        {
            "_name_or_path": "x",
            "_attn_implementation_internal": "evil/repo",
            "auto_map": {"a": "b"},
        },
        {"sliding_window": 4096},
        {"use_sliding_window": True, "sliding_window": 4096},  # max_window_layers is past the end
        {"attention_bias": DROP, "hidden_act": DROP, "quantization_config": None},
        {"partial_rotary_factor": 1.0, "is_causal": True},
    ],
    ids=range(12),
)
def test_equal_meanings(tmp_path, changes):
    plain = read(tmp_path, {})
    assert read(tmp_path, changes) == plain


@pytest.mark.parametrize("model_class_default", [None, YARN, YARN | {"attention_factor": 1.5}])
def test_transformers_writes_what_we_read(tmp_path, model_class_default):
    transformers = pytest.importorskip("transformers")
    rope = {"rope_theta": 5e6, **(model_class_default or {"rope_type": "default"})}
    kept = ("hidden_size", "num_hidden_layers", "head_dim", "vocab_size")
    theirs = transformers.Qwen3Config(rope_parameters=rope, **{key: REAL[key] for key in kept})
    theirs.save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    assert ours.rope.theta == 5e6
    assert ours.rope.kind == rope["rope_type"]
    for key in ("intermediate_size", "num_attention_heads", "max_position_embeddings", *kept):
        assert getattr(ours, key) == getattr(theirs, key)


YARNS = {
    "plain": YARN,
    "legacy": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "ratio": {"rope_type": "yarn", "original_max_position_embeddings": 8192},
    "given": YARN | {"attention_factor": 1.25},
    "mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 1.5},
    "one-mscale": YARN | {"mscale": 0.707},
    "betas": YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
    "below-one": YARN | {"factor": 1.0},
    "no-original": {"rope_type": "yarn", "factor": 2.0},
}


@pytest.mark.parametrize("name", YARNS)
@pytest.mark.parametrize("form", ["v4", "v5"])
def test_yarn_attention_factor_is_that_of_transformers(tmp_path, name, form):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = YARNS[name]
    in_v4, in_v5 = {"rope_scaling": scaling}, {"rope_parameters": {"rope_theta": 1e6, **scaling}}
    ours = read(tmp_path, in_v4 if form == "v4" else V5 | in_v5).rope
    theirs = transformers.Qwen3Config(
        head_dim=128,
        max_position_embeddings=32768,
        rope_parameters={
            "rope_theta": 1e6,
            "factor": None,
            **{key.replace("type", "rope_type", key == "type"): v for key, v in scaling.items()},
        },
    )
    _, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    assert ours.attention_factor == pytest.approx(factor, rel=1e-12)
    assert ours.original_max_position_embeddings == scaling.get(
        "original_max_position_embeddings", 32768
    )


def test_yarn_defaults(tmp_path):
    rope = read(tmp_path, {"rope_scaling": YARN}).rope
    assert (rope.factor, rope.beta_fast, rope.beta_slow, rope.truncate) == (4.0, 32.0, 1.0, True)
    assert rope.attention_factor == 0.1 * math.log(4.0) + 1


BAD = [
    ({"model_type": "llama"}, "model_type", '"llama"'),
    ({"model_type": DROP}, "model_type is missing", "qwen3"),
    ({"hidden_act": "gelu"}, "hidden_act", '"gelu"'),
    ({"head_dim": DROP}, "head_dim is missing", "integer"),
    ({"head_dim": None}, "head_dim", "null"),
    ({"head_dim": 127}, "head_dim", "even"),
    ({"hidden_size": 0}, "hidden_size", "got 0"),
    ({"hidden_size": -1024}, "hidden_size", "-1024"),
    ({"hidden_size": 1024.0}, "hidden_size", "1024.0"),
    ({"hidden_size": "1024"}, "hidden_size", '"1024"'),
    ({"hidden_size": 10**30}, "hidden_size", "integer"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps", "a finite number"),
    ({"rope_theta": 10**400}, "rope_theta", "a finite number"),
    ({"num_hidden_layers": True}, "num_hidden_layers", "true"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers", "10000"),
    ({"num_key_value_heads": 3}, "num_key_value_heads", "divisor"),
    ({"vocab_size": DROP}, "vocab_size is missing", "integer"),
    ({"max_position_embeddings": 1}, "max_position_embeddings", "got 1"),
    ({"rms_norm_eps": 0}, "rms_norm_eps", "got 0"),
    ({"rms_norm_eps": True}, "rms_norm_eps", "true"),
    ({"attention_bias": 1}, "attention_bias", "true or false"),
    ({"quantization_config": {"bits": 4}}, "quantization_config", "quantised"),
    ({"num_experts": 8, "mlp_bias": True}, "unknown settings", "mlp_bias, num_experts"),
    ({"is_causal": False}, "is_causal", "causal"),
    ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 4}, "sliding", "not"),
    (
        {"use_sliding_window": True, "sliding_window": DROP, "max_window_layers": 0},
        "sliding",
        "not",
    ),
    ({"layer_types": ["full_attention"] * 27 + ["sliding_attention"]}, "layer_types", "sliding_"),
    ({"layer_types": ["full_attention"]}, "layer_types", "28 names"),
    ({"rope_theta": DROP}, "rope_theta", "missing"),
    ({"rope_theta": 0}, "rope_theta", "above 1"),
    ({"rope_theta": "1e6"}, "rope_theta", '"1e6"'),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type", '"dynamic"'),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type", '"linear"'),
    ({"rope_scaling": {"factor": 2.0}}, "rope_type default", "factor"),
    ({"rope_scaling": "yarn"}, "rope_scaling", "object"),
    ({"rope_scaling": YARN | {"factor": 0.5}}, "factor", "at least 1"),
    ({"rope_scaling": YARN | {"factor": "4"}}, "factor", '"4"'),
    ({"rope_scaling": {"rope_type": "yarn"}}, "factor", "missing"),
    ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "beta_fast", "beta_slow"),
    ({"rope_scaling": YARN | {"attention_factor": -1}}, "attention_factor", "-1"),
    ({"rope_scaling": YARN | {"truncate": 0}}, "truncate", "true or false"),
    ({"rope_scaling": YARN | {"short_factor": [1]}}, "unknown", "short_factor"),
    ({"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e4}}, "rope_scaling", "disagree"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "0.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor", "0.5"),
]


@pytest.mark.parametrize(
    ("changes", "what", "detail"),
    BAD,
    ids=[f"{'+'.join(c)}-{i}" for i, (c, _, _) in enumerate(BAD)],
)
def test_refused_by_name(tmp_path, changes, what, detail):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, changes)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "config.json"))
    assert what in message
    assert detail in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"7", "expected a JSON object"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b'{"head_dim": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', '"a" occurs twice'),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
    ids=["empty", "cut", "list", "number", "utf16", "nan", "twice", "deep", "digits"],
)
def test_not_json(tmp_path, content, what):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=what) as error:
        read_config(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(error.value)


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json: no such file"):
        read_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read"):
        read_config(tmp_path)
