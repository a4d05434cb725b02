"""Read config.json through an allow-list.

lastword must never silently ignore a setting that it does not implement. So every key of the file is either used and
checked, or known not to affect the forward pass, or refused by name. No code that a checkpoint names is ever imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from lastword.errors import ConfigError, list_some
from lastword.weights.json_fields import NOT_SUPPORTED, Fields, read_object, show_value
from lastword.weights.rope import PARTIAL_ROTATION, RopeConfig, read_rope
from lastword.weights.tokenizer_settings import TOKENIZER_CLASSES

_USED = frozenset(
    "model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim vocab_size max_position_embeddings rms_norm_eps attention_bias hidden_act rope_theta "
    "rope_scaling rope_parameters partial_rotary_factor use_sliding_window sliding_window "
    "max_window_layers layer_types is_causal architectures".split()
)
# None of these changes the result of the forward pass.
_HARMLESS = frozenset(
    # Dropout and initialisation, which act in training only, and notes of training tools.
    "attention_dropout gradient_checkpointing initializer_range unsloth_fixed unsloth_version "
    # Token ids and generation: tokenizer.json says which special tokens are added, and no text is generated.
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix max_length min_length "
    "do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p "
    "repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    # Heads for other tasks, which an embedding does not use.
    "id2label label2id num_labels problem_type finetuning_task task_specific_params tf_legacy_loss "
    "tie_word_embeddings "
    # How the model is computed, and what it returns besides the final states.
    "attn_implementation dtype torch_dtype use_bfloat16 use_cache output_attentions output_hidden_states "
    "return_dict torchscript pretraining_tp is_decoder _attn_implementation _attn_implementation_autoset "
    "_attn_implementation_internal _experts_implementation_internal experts_implementation "
    # Notes: who wrote the file, and dimensions to which users may truncate vectors.
    "transformers_version _name_or_path _commit_hash is_matryoshka matryoshka_dimensions".split()
)
# Settings that matter to other models or to code that lastword does not run, each with the values that change nothing.
_ONLY: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False, None),
    "auto_map": (None, {}),
    "chunk_size_feed_forward": (0, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "mlp_bias": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "tokenizer_class": TOKENIZER_CLASSES,
    "use_bidirectional_attention": (False, None),
    "use_mrope": (False, None),
    "use_qk_norm": (True, None),
}
_REMEDIES = {
    "auto_map": "It names code of the model's own, which is not run. Name a model of transformers' own Qwen3 class.",
    "quantization_config": "Quantised checkpoints are not supported. "
    "Name the checkpoint from which this one was quantised.",
}
# sentence-transformers opens models with AutoModel, which loads the class Qwen3Model for either of these names.
_EMBEDDERS = ("Qwen3Model", "Qwen3ForCausalLM")
CAUSAL, CLASSIFIER = "Qwen3ForCausalLM", "Qwen3ForSequenceClassification"
# Keys in which sentence-transformers before 5.4 states a reranker's activation; `reranker_spec.py` reads them.
ACTIVATION_KEYS = frozenset({"sentence_transformers", "sbert_ce_default_activation_function"})

_FULL_ATTENTION = "Name a model with full attention in every layer."

# Limits restrict the inputs but never change a result, so models that differ only in limits give equal results.
LIMITS = frozenset({"max_position_embeddings"})
# Every setting that is not a limit, sorted. Adding a setting does not require raising `NUMERIC_VERSION`.
_NUMERIC = (
    "attention_bias", "head_dim", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "rms_norm_eps", "rope.attention_factor", "rope.beta_fast", "rope.beta_slow", "rope.factor",
    "rope.kind", "rope.original_max_position_embeddings", "rope.theta", "rope.truncate", "vocab_size",
)  # fmt: skip
NUMERIC_VERSION = 1  # raise this when a setting keeps its name but changes its meaning


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The settings of the forward pass, under their Hugging Face names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    attention_bias: bool
    rope: RopeConfig

    def more_positions(self) -> str | None:
        """Return advice on allowing longer texts; None unless YaRN covers more than `max_position_embeddings`."""
        reach = int(self.rope.factor * self.rope.original_max_position_embeddings)
        if reach <= self.max_position_embeddings:
            return None
        original = self.rope.original_max_position_embeddings
        return (
            f"YaRN is set for {reach} tokens: in config.json raise max_position_embeddings to {reach}, "
            f"and keep original_max_position_embeddings at {original}."
        )

    def keys_values_bytes(self, itemsize: int) -> int:
        """Return the bytes of one token's keys and values in all layers, at `itemsize` bytes per number."""
        return 2 * self.num_key_value_heads * self.head_dim * itemsize * self.num_hidden_layers

    def numeric_settings(self) -> dict[str, bool | int | float | str]:
        """Return the version and the settings that affect the result, by name in a fixed order, without `LIMITS`."""
        named = {name: attrgetter(name)(self) for name in _NUMERIC}
        return {"version": NUMERIC_VERSION, **named}


def read_config(folder: Path, *, reranker: bool = False) -> ModelConfig:
    """Read and check `config.json`, as written by transformers 4 or 5.

    Args:
        folder: the model's folder.
        reranker: whether the file must name a reranker's class instead of an embedding model's.

    Raises:
        WeightsError: the file is missing or cannot be read.
        ConfigError: the file is not JSON, or a setting is missing, out of range or not supported.
    """
    path = Path(folder) / "config.json"
    return parse_config(read_object(path), str(path), reranker=reranker)


def parse_config(values: Mapping[str, Any], where: str, *, reranker: bool = False) -> ModelConfig:
    """Check the JSON object of a config.json and return its settings.

    Args:
        values: the object.
        where: the beginning of each error message.
        reranker: as in `read_config`.

    Raises:
        ConfigError: a setting is missing, out of range or not supported.
    """
    fields = Fields(values, where)
    _refuse_foreign(fields, reranker=reranker)
    heads = fields.integer("num_attention_heads", high=2**16)
    kv_heads = fields.integer("num_key_value_heads", high=2**16)
    if heads % kv_heads:
        fields.fail("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    # transformers takes 128 if this key is missing. But every program writes the key, so a file without it is damaged.
    head_dim = fields.integer("head_dim", low=2, high=2**16)
    if head_dim % 2:
        fields.fail("head_dim", "an even number")
    positions = fields.integer("max_position_embeddings", low=2)
    return ModelConfig(
        hidden_size=fields.integer("hidden_size", high=2**20),
        intermediate_size=fields.integer("intermediate_size", high=2**24),
        num_hidden_layers=fields.integer("num_hidden_layers", high=10_000),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=positions,
        rms_norm_eps=fields.number("rms_norm_eps"),
        attention_bias=fields.boolean("attention_bias", default=False),
        rope=read_rope(values, where, positions),
    )


def _refuse_foreign(fields: Fields, *, reranker: bool) -> None:
    """Refuse every setting that would make the forward pass differ from the one that lastword computes."""
    values = fields.values
    if values.get("model_type") != "qwen3":
        fields.fail("model_type", '"qwen3"', "Only Qwen3 models are supported. Name a Qwen3 model.")
    known = _USED | _HARMLESS | _ONLY.keys()
    fields.refuse_unknown(known | ACTIVATION_KEYS if reranker else known)
    for key, allowed in _ONLY.items():
        fields.only(key, *allowed, remedy=_REMEDIES.get(key, NOT_SUPPORTED))
    _refuse_architectures(fields, reranker=reranker)
    if values.get("hidden_act", "silu") != "silu":
        fields.fail(
            "hidden_act", '"silu"', "Other activations are not supported. Name another model."
        )
    if values.get("partial_rotary_factor") not in (None, 1):
        fields.fail("partial_rotary_factor", "1", PARTIAL_ROTATION)
    # Computing a shared prefix once is exact only with causal attention.
    if values.get("is_causal", True) is not True:
        fields.fail("is_causal", "true", "Only causal attention is supported. Name a causal model.")
    _refuse_sliding(fields)


def _refuse_architectures(fields: Fields, *, reranker: bool) -> None:
    """Refuse the classes of other models: some models, such as bidirectional ones, also state Qwen3's model type."""
    named = fields.values.get("architectures")
    if reranker:
        if named not in ([CAUSAL], [CLASSIFIER]):
            remedy = "Only these two kinds of rerankers are supported. Name another model."
            fields.fail("architectures", f'["{CAUSAL}"] or ["{CLASSIFIER}"]', remedy)
        return
    if named is not None and not (isinstance(named, list) and all(n in _EMBEDDERS for n in named)):
        remedy = "Only Qwen3's own classes are supported. Name another model."
        if named == [CLASSIFIER]:
            remedy = "If it is a reranker, use lastword rerank, or lastword.Reranker in Python."
        fields.fail("architectures", " or ".join(_EMBEDDERS), remedy)


def _refuse_sliding(fields: Fields) -> None:
    values, where = fields.values, fields.where
    layers = fields.integer("num_hidden_layers", high=10_000)
    kinds = values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            fields.fail("layer_types", f"a list of {layers} names, one per layer")
        foreign = {show_value(kind) for kind in kinds if kind != "full_attention"}
        if foreign:
            raise ConfigError(
                f"{where}: layer_types",
                "not supported",
                got=list_some(foreign),
                expected="full_attention in every layer",
                remedy=_FULL_ATTENTION,
            )
        return
    # Without layer_types, transformers uses a sliding window in the layers from max_window_layers on.
    first = values.get("max_window_layers", 28)
    window = fields.boolean("use_sliding_window", default=False) and values.get(
        "sliding_window", 4096
    )
    if window not in (None, False) and not (type(first) is int and first >= layers):
        what = "sliding-window attention is not supported"
        raise ConfigError(f"{where}: use_sliding_window", what, remedy=_FULL_ATTENTION)
