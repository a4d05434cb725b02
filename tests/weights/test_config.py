"""config.json: files of real writers are read completely; unsupported settings are refused by name."""

import copy
import json
import math
from dataclasses import fields, replace

import pytest
import torch

from lastword.errors import ConfigError, WeightsError
from lastword.weights import ModelConfig, read_config
from lastword.weights.config import LIMITS

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


def changed_config(changes: dict) -> dict:
    values = copy.deepcopy(REAL) | changes
    return {key: value for key, value in values.items() if value is not DROP}


def read(tmp_path, changes: dict) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(changed_config(changes)))
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
        {"_name_or_path": "x", "_attn_implementation_internal": "evil/repo", "auto_map": {}},
        {"architectures": ["Qwen3Model"], "tokenizer_class": "Qwen2Tokenizer"},
        {"architectures": DROP, "gradient_checkpointing": True},
        {"is_matryoshka": True, "matryoshka_dimensions": [32, 64]},
        {"mlp_bias": False, "use_mrope": False, "use_bidirectional_attention": False},
        {"add_cross_attention": False, "chunk_size_feed_forward": 0, "pruned_heads": {}},
        {"sliding_window": 4096},
        {"use_sliding_window": True, "sliding_window": 4096},  # max_window_layers is past the end
        {"attention_bias": DROP, "hidden_act": DROP, "quantization_config": None},
        {"partial_rotary_factor": 1.0, "is_causal": True},
    ],
    ids=range(17),
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


@pytest.mark.parametrize("original", [32768, 65536])
def test_yarn_that_would_stretch_nothing_names_the_field_to_raise(tmp_path, original):
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": original}
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, {"rope_scaling": scaling})
    error = caught.value
    assert error.where == f"{tmp_path / 'config.json'}: rotary settings: factor"
    assert (error.what, error.expected) == ("missing", "a number of at least 1")
    raised = f"raise max_position_embeddings, which is 32768, above {original}."
    assert error.remedy == f"State it, or {raised}"


@pytest.mark.parametrize(("positions", "raised"), [(32768, 131072), (131072, None)])
def test_yarn_beyond_the_positions(tmp_path, positions, raised):
    found = read(tmp_path, {"rope_scaling": YARN, "max_position_embeddings": positions})
    advice = found.more_positions()
    assert (advice is None) is (raised is None)
    assert raised is None or f"raise max_position_embeddings to {raised}" in str(advice)
    assert read(tmp_path, {}).more_positions() is None


SIZE, LAYERS = "an integer from 1 to 1048576", "an integer from 1 to 10000"
ABOVE_0, ABOVE_1, BOOLEAN = "a finite number above 0", "a finite number above 1", "true or false"
CODE, OWN = {"AutoModel": "modeling.Model"}, "Qwen3Model or Qwen3ForCausalLM"
HUGE = "1" + 58 * "0" + "…"  # as shown in the message
# The changes, the setting, got (None if it is missing) and expected.
WRONG_VALUES = [
    ({"model_type": "llama"}, "model_type", '"llama"', '"qwen3"'),
    ({"model_type": DROP}, "model_type", None, '"qwen3"'),
    ({"hidden_act": "gelu"}, "hidden_act", '"gelu"', '"silu"'),
    ({"head_dim": DROP}, "head_dim", None, "an integer from 2 to 65536"),
    ({"head_dim": None}, "head_dim", "null", "an integer from 2 to 65536"),
    ({"head_dim": 127}, "head_dim", "127", "an even number"),
    ({"hidden_size": 0}, "hidden_size", "0", SIZE),
    ({"hidden_size": -1024}, "hidden_size", "-1024", SIZE),
    ({"hidden_size": 1024.0}, "hidden_size", "1024.0", SIZE),
    ({"hidden_size": "1024"}, "hidden_size", '"1024"', SIZE),
    ({"hidden_size": 10**30}, "hidden_size", str(10**30), SIZE),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps", HUGE, ABOVE_0),
    ({"rope_theta": 10**400}, "rotary settings: rope_theta", HUGE, ABOVE_1),
    ({"num_hidden_layers": True}, "num_hidden_layers", "true", LAYERS),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers", "1000000", LAYERS),
    ({"num_key_value_heads": 3}, "num_key_value_heads", "3", "a divisor of num_attention_heads, which is 16"),
    ({"vocab_size": DROP}, "vocab_size", None, "an integer from 1 to 2147483647"),
    ({"max_position_embeddings": 1}, "max_position_embeddings", "1", "an integer from 2 to 2147483647"),
    ({"rms_norm_eps": 0}, "rms_norm_eps", "0", ABOVE_0),
    ({"rms_norm_eps": True}, "rms_norm_eps", "true", ABOVE_0),
    ({"attention_bias": 1}, "attention_bias", "1", BOOLEAN),
    ({"is_causal": False}, "is_causal", "false", "true"),
    ({"layer_types": ["full_attention"]}, "layer_types", '["full_attention"]', "a list of 28 names, one per layer"),
    ({"rope_theta": DROP}, "rotary settings: rope_theta", None, ABOVE_1),
    ({"rope_theta": 0}, "rotary settings: rope_theta", "0", ABOVE_1),
    ({"rope_theta": "1e6"}, "rotary settings: rope_theta", '"1e6"', ABOVE_1),
    ({"rope_scaling": "yarn"}, "rope_scaling", '"yarn"', "a JSON object or null"),
    ({"rope_scaling": YARN | {"factor": 0.5}}, "rotary settings: factor", "0.5", "a number of at least 1"),
    ({"rope_scaling": YARN | {"factor": "4"}}, "rotary settings: factor", '"4"', ABOVE_0),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rotary settings: factor", None, "a number of at least 1"),
    (
        {"rope_scaling": YARN | {"beta_fast": 0.5}},
        "rotary settings: beta_fast", "0.5", "at least beta_slow, which is 1",
    ),
    ({"rope_scaling": YARN | {"attention_factor": -1}}, "rotary settings: attention_factor", "-1", ABOVE_0),
    ({"rope_scaling": YARN | {"truncate": 0}}, "rotary settings: truncate", "0", BOOLEAN),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "0.5", "1"),
    ({"quantization_config": {"bits": 4}}, "quantization_config", '{"bits": 4}', "null"),
    ({"auto_map": CODE}, "auto_map", '{"AutoModel": "modeling.Model"}', "null"),
    ({"auto_map": {"AutoConfig": "c.C"}}, "auto_map", '{"AutoConfig": "c.C"}', "null"),
    ({"auto_map": "modeling.Model"}, "auto_map", '"modeling.Model"', "null"),
    ({"architectures": ["Qwen3BidirectionalModel"]}, "architectures", '["Qwen3BidirectionalModel"]', OWN),
    ({"architectures": ["Qwen3Model", "LlamaModel"]}, "architectures", '["Qwen3Model", "LlamaModel"]', OWN),
    ({"architectures": "Qwen3Model"}, "architectures", '"Qwen3Model"', OWN),
    ({"mlp_bias": True}, "mlp_bias", "true", "false"),
    ({"mlp_bias": 0}, "mlp_bias", "0", "false"),
    ({"use_mrope": True}, "use_mrope", "true", "false"),
    ({"use_qk_norm": False}, "use_qk_norm", "false", "true"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention", "true", "false"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads", '{"0": [1]}', "{}"),
    ({"add_cross_attention": True}, "add_cross_attention", "true", "false"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder", "true", "false"),
    ({"tokenizer_class": "BertTokenizer"}, "tokenizer_class", '"BertTokenizer"', '"Qwen2Tokenizer"'),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotary settings: partial_rotary_factor", "0.5", "1"),
]  # fmt: skip
FULL = "Name a model with full attention in every layer."
SLIDES = {"what": "sliding-window attention is not supported", "remedy": FULL}
KINDS = {
    "what": "not supported",
    "expected": "default or yarn",
    "remedy": "Name a model with one of these.",
}
UNKNOWN = "They might change the vectors, so they are not supported. If they do not, remove them from the file."
UNKNOWN_ROPE = "They are not supported. Correct rope_type, or remove them from the file."
PARTIAL = "Partially rotated heads are not supported. Name another model."
OTHER_VALUES = dict.fromkeys(
    (
        "mlp_bias", "use_mrope", "use_qk_norm", "use_bidirectional_attention", "pruned_heads",
        "add_cross_attention", "is_encoder_decoder", "tokenizer_class",
    ),
    "Other values are not supported. Name another model.",
)  # fmt: skip
REMEDIES = OTHER_VALUES | {
    "quantization_config": "Quantised checkpoints are not supported. "
    "Name the checkpoint from which this one was quantised.",
    "auto_map": "It names code of the model's own, which is not run. "
    "Name a model of transformers' own Qwen3 class.",
    "architectures": "Only Qwen3's own classes are supported. Name another model.",
    "model_type": "Only Qwen3 models are supported. Name a Qwen3 model.",
    "hidden_act": "Other activations are not supported. Name another model.",
    "is_causal": "Only causal attention is supported. Name a causal model.",
    "partial_rotary_factor": PARTIAL,
    "rotary settings: partial_rotary_factor": PARTIAL,
}
NOT_SUPPORTED = [
    (
        {"num_experts": 8, "_of_a_later_version": True},
        "",
        {"what": "unknown settings: _of_a_later_version, num_experts", "remedy": UNKNOWN},
    ),
    (
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 4},
        ": use_sliding_window",
        SLIDES,
    ),
    (
        {"use_sliding_window": True, "sliding_window": DROP, "max_window_layers": 0},
        ": use_sliding_window",
        SLIDES,
    ),
    (
        {"layer_types": ["full_attention"] * 27 + ["sliding_attention"]},
        ": layer_types",
        {
            "what": "not supported",
            "got": '"sliding_attention"',
            "expected": "full_attention in every layer",
            "remedy": FULL,
        },
    ),
    (
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        ": rotary settings: rope_type",
        KINDS | {"got": '"dynamic"'},
    ),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        ": rotary settings: rope_type",
        KINDS | {"got": '"linear"'},
    ),
    (
        {"rope_scaling": {"factor": 2.0}},
        ": rotary settings",
        {"what": "unknown settings for rope_type default: factor", "remedy": UNKNOWN_ROPE},
    ),
    (
        {"rope_scaling": YARN | {"short_factor": [1]}},
        ": rotary settings",
        {"what": "unknown settings for rope_type yarn: short_factor", "remedy": UNKNOWN_ROPE},
    ),
    (
        {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e4}},
        "",
        {
            "what": "rope_scaling and rope_parameters disagree",
            "remedy": "Remove the wrong one from the file.",
        },
    ),
]


def names_of(cases) -> list[str]:
    return [f"{'+'.join(changes)}-{i}" for i, (changes, *_) in enumerate(cases)]


@pytest.mark.parametrize(
    ("changes", "key", "got", "expected"), WRONG_VALUES, ids=names_of(WRONG_VALUES)
)
def test_a_wrong_value_is_refused_by_name(tmp_path, changes, key, got, expected):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, changes)
    error = caught.value
    assert error.where == f"{tmp_path / 'config.json'}: {key}"
    assert error.what == ("missing" if got is None else "wrong value")
    assert (error.got, error.expected) == (got, expected)
    assert error.remedy == REMEDIES.get(key)
    assert "\n" not in str(error)


@pytest.mark.parametrize(("changes", "place", "parts"), NOT_SUPPORTED, ids=names_of(NOT_SUPPORTED))
def test_what_is_not_implemented_is_refused_by_name(tmp_path, changes, place, parts):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, changes)
    expected = ConfigError(f"{tmp_path / 'config.json'}{place}", **parts)
    assert vars(caught.value) == vars(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what", "got"),
    [
        (b"{", "not valid JSON", None),
        (b'{"a":\n 1, }', "not valid JSON", None),
        (b"[]", "wrong content", "a list"),
        (b"7", "wrong content", "7"),
        (b"\xff{}", "not UTF-8 at byte 0", None),
        (b'{"head_dim": NaN}', "not valid JSON (it contains NaN)", None),
        (b'{"a": 1, "a": 2}', 'not valid JSON (key "a" occurs twice)', None),
        (b"[" * 200_000, "not valid JSON (nested too deeply)", None),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON", None),
    ],
    ids=["cut", "line", "list", "number", "not-utf8", "nan", "twice", "deep", "digits"],
)
def test_not_json(tmp_path, content, what, got):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    error = caught.value
    assert error.where == str(tmp_path / "config.json")
    assert error.what.startswith(
        what
    )  # the library's message about broken JSON depends on the Python version
    assert error.got == got
    assert error.expected == ("a JSON object" if got else None)
    assert ("line 2, column" in error.what) is (b"\n" in content)
    assert "\n" not in str(error)


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(WeightsError) as caught:
        read_config(tmp_path)
    path = str(tmp_path / "config.json")
    assert (caught.value.where, caught.value.what) == (path, "no such file")
    assert caught.value.remedy == "Name a folder that holds the whole model."
    (tmp_path / "config.json").mkdir()
    with pytest.raises(WeightsError) as caught:
        read_config(tmp_path)
    assert (caught.value.where, caught.value.what) == (path, "cannot be read (it is a folder)")


NUMERIC = {
    "version": 1,
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope.attention_factor": 1.0,
    "rope.beta_fast": 32.0,
    "rope.beta_slow": 1.0,
    "rope.factor": 1.0,
    "rope.kind": "default",
    "rope.original_max_position_embeddings": 0,
    "rope.theta": 1e6,
    "rope.truncate": True,
    "vocab_size": 151669,
}


def leaves(config: ModelConfig) -> dict[str, object]:
    """Return every field by its name; rotary settings are named `rope.NAME`."""
    plain = {field.name: getattr(config, field.name) for field in fields(config)}
    rope = plain.pop("rope")
    return plain | {f"rope.{field.name}": getattr(rope, field.name) for field in fields(rope)}


def with_leaf(config: ModelConfig, name: str, value: object) -> ModelConfig:
    inner = name.removeprefix("rope.")
    if inner != name:
        return replace(config, rope=replace(config.rope, **{inner: value}))
    return replace(config, **{name: value})


def other_than(value: object) -> object:
    if isinstance(value, bool):
        return not value
    return f"{value}2" if isinstance(value, str) else value + 1


def test_numeric_settings_are_written_down(tmp_path):
    """A hash of these settings identifies vectors, so no name, order, type or value may change unnoticed."""
    found = read(tmp_path, {}).numeric_settings()
    assert list(found.items()) == list(NUMERIC.items())
    assert [type(value) for value in found.values()] == [type(v) for v in NUMERIC.values()]
    assert list(found)[1:] == sorted(list(found)[1:])


def test_every_setting_is_numeric_or_a_limit(tmp_path):
    config = read(tmp_path, {})
    assert NUMERIC.keys() - {"version"} | LIMITS == leaves(config).keys()
    assert not NUMERIC.keys() & LIMITS


@pytest.mark.parametrize("rope_scaling", [None, YARN], ids=["default", "yarn"])
def test_numeric_settings_see_every_setting_but_the_limits(tmp_path, rope_scaling):
    config = read(tmp_path, {"rope_scaling": rope_scaling})
    before = config.numeric_settings()
    for name, value in leaves(config).items():
        after = with_leaf(config, name, other_than(value)).numeric_settings()
        changed = {key for key in before if after[key] != before[key]}
        assert changed == {name} - LIMITS


@pytest.mark.parametrize("rope_scaling", [None, YARN], ids=["default", "yarn"])
def test_a_file_with_another_limit_has_the_same_numeric_settings(tmp_path, rope_scaling):
    first, second = (
        read(tmp_path, {"max_position_embeddings": limit, "rope_scaling": rope_scaling})
        for limit in (32768, 40960)
    )
    assert first != second
    assert first.numeric_settings() == second.numeric_settings()
    # A factor that is not given is computed from the limit, but it is not a limit itself.
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 8192}
    third, fourth = (
        read(tmp_path, {"max_position_embeddings": limit, "rope_scaling": scaling})
        for limit in (32768, 40960)
    )
    assert third.numeric_settings() != fourth.numeric_settings()
