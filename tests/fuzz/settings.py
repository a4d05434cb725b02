"""Values that a setting may well have: changes of a checkpoint that other programs understand.

What is accepted here must have the vectors that sentence-transformers gives, which `fuzz.oracle` checks.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

GONE = object()  # the key is left out

_FIRST, _SECOND = (
    {"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")
)
_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [_FIRST],
    "pair": [_FIRST, _SECOND],
    "special_tokens": {},
}
_YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}
_TRUNCATION = {"direction": "Left", "max_length": 6, "strategy": "LongestFirst", "stride": 0}
_PADDING = {
    "strategy": "BatchLongest",
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 1,
    "pad_type_id": 0,
    "pad_token": "<|im_start|>",
}
_ADDED = {
    "special": True,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
}
_BYTES = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_OLD, _NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules."
_CHAIN = [{"idx": 0, "name": "0", "path": "", "type": f"{_OLD}Transformer"},
          {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{_OLD}Pooling"},
          {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{_OLD}Normalize"}]  # fmt: skip
_KEYWORDS: tuple[Any, ...] = (
    GONE, {}, {"model_max_length": 5}, {"truncation_side": "left", "model_max_length": 6},
    {"padding_side": "left"}, {"add_eos_token": False}, {"use_fast": True},
)  # fmt: skip

PLAUSIBLE: dict[str, dict[str, tuple[Any, ...]]] = {
    "config.json": {
        "rope_theta": (GONE, 10000.0, 1e7, 5000),
        "rope_scaling": (GONE, None, _YARN, {**_YARN, "type": "yarn"}, {"rope_type": "default"},
                         {"type": "linear", "factor": 2.0}),
        "rope_parameters": (GONE, {"rope_type": "default", "rope_theta": 5e4}, {**_YARN, "rope_theta": 1e6}),
        "rms_norm_eps": (1e-5, 1e-3, 0.1),
        "max_position_embeddings": (64, 1024, 32768),
        "tie_word_embeddings": (True, False),
        "attention_bias": (GONE, False, True),
        "hidden_act": ("silu", "swish", "gelu", "relu"),
        "use_sliding_window": (False, True),
        "sliding_window": (None, 8, 4096),
        "layer_types": (GONE, ["full_attention"] * 2, ["full_attention", "sliding_attention"]),
        "max_window_layers": (0, 1, 2, 28),
        "head_dim": (GONE, 16, 8, None),
        "num_key_value_heads": (1, 2),
        "is_causal": (GONE, True, False),
        "use_bidirectional_attention": (GONE, True, False),
        "architectures": (GONE, None, ["Qwen3Model"], ["Qwen3ForCausalLM"], ["Qwen3ForSequenceClassification"],
                          ["Qwen2Model"]),
        "auto_map": (GONE, {}, {"AutoModel": "modeling.Model"}, {"AutoTokenizer": "tokenization.T"}),
        "dtype": (GONE, "float32", "bfloat16", "float16"),
        "torch_dtype": (GONE, "float32", "bfloat16"),
        "attention_dropout": (0.0, 0.1),
        "partial_rotary_factor": (GONE, 1.0, 0.5),
        "mlp_bias": (False, True),
        "use_mrope": (False, True),
        "use_cache": (False, True),
        "quantization_config": (GONE, None, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "is_decoder": (False, True),
        "unknown_setting": (1, None),
    },
    "modules.json": {"": (_CHAIN, _CHAIN[:2], [{**each, "type": each["type"].replace(_OLD, _NEW)} for each in _CHAIN],
        [_CHAIN[0], _CHAIN[1], {**_CHAIN[2], "type": f"{_OLD}Dense"}], [_CHAIN[0], _CHAIN[2]], [*_CHAIN, _CHAIN[2]],
        [{**_CHAIN[0], "type": "custom_st.Transformer"}, *_CHAIN[1:]], [{**_CHAIN[0], "kwargs": ["task"]}, *_CHAIN[1:]],
        [{**_CHAIN[0], "type": "sentence_transformers.models.Transformer.Transformer"}, *_CHAIN[1:]])},
    "1_Pooling/config.json": {
        "pooling_mode_lasttoken": (True, False, GONE),
        "pooling_mode_mean_tokens": (True, False, GONE),
        "pooling_mode_cls_token": (True, False, GONE),
        "pooling_mode": ("lasttoken", "mean", ["lasttoken"], ["lasttoken", "mean"]),
        "include_prompt": (True, False, GONE),
        "word_embedding_dimension": (32, 64, GONE),
        "embedding_dimension": (32, 16),
    },
    "2_Normalize/config.json": {
        "module_input_name": ("sentence_embedding", "token_embeddings"),
        "module_output_name": ("sentence_embedding", "other"),
        "p": (2, 1),
    },
    "config_sentence_transformers.json": {
        "prompts": ({}, GONE, None, {"query": "Q: "}, {"query": "Q: ", "document": "D: ", "x": "X"}, {"query": None}),
        "default_prompt_name": (None, GONE, "query", "document", "x"),
        "similarity_fn_name": (None, GONE, "cosine", "cos_sim", "dot", "dot_score", "euclidean", "manhattan"),
        "truncate_dim": (None, 8, 32, 1),
        "model_type": (GONE, "SentenceTransformer", "SparseEncoder"),
        "model_kwargs": (GONE, {}, {"dtype": "bfloat16"}),
        "__version__": ({"sentence_transformers": "2.2.2"}, {"sentence_transformers": "99.0"}),
    },
    "sentence_bert_config.json": {
        "max_seq_length": (GONE, None, 4, 16, 512, 4096),
        "do_lower_case": (GONE, False, True),
        "config_kwargs": (GONE, {}, {"rope_theta": 100.0}, {"rms_norm_eps": 0.1}),
        "config_args": (GONE, {}, {"rope_theta": 100.0}),
        "model_kwargs": (GONE, {}, {"attn_implementation": "eager"}, {"dtype": "float64"}),
        "model_args": (GONE, {}, {"attn_implementation": "sdpa"}),
        "tokenizer_kwargs": _KEYWORDS,
        "tokenizer_args": _KEYWORDS,
        "processor_kwargs": _KEYWORDS,
        "modality_config": (GONE, {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}),
        "module_output_name": (GONE, "token_embeddings", "other"),
        "transformer_task": (GONE, "feature-extraction", "fill-mask"),
        "unpad_inputs": (GONE, True, False),
    },
    "tokenizer_config.json": {
        "model_max_length": (GONE, None, 4, 64, 512, 10**30, 1e30),
        "truncation_side": (GONE, "left", "right"),
        "padding_side": (GONE, "left", "right"),
        "add_bos_token": (GONE, True, False),
        "add_eos_token": (GONE, True, False),
        "add_prefix_space": (GONE, True, False),
        "do_lower_case": (GONE, True, False),
        "tokenizer_class": (GONE, "PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast"),
        "split_special_tokens": (GONE, True, False),
        "bos_token": (GONE, None, "<|im_start|>"),
        "eos_token": ("<|endoftext|>", "<|im_end|>", {"content": "<|im_end|>", "lstrip": True}),
        "extra_special_tokens": (GONE, {}, ["cat"], {"a": "cat"}),
        "additional_special_tokens": (GONE, [], ["sat"]),
        "added_tokens_decoder": (GONE, {"3": {"content": "the cat", **_ADDED, "special": False}}),
        "chat_template": (GONE, "{{ messages }}"),
        "clean_up_tokenization_spaces": (True, False),
    },
    "special_tokens_map.json": {
        "eos_token": ("<|endoftext|>", "<|im_end|>", GONE),
        "pad_token": ("<|endoftext|>", "<|im_start|>", GONE),
        "bos_token": (GONE, "<|im_start|>"),
        "additional_special_tokens": (GONE, ["cat"]),
    },
    "tokenizer.json": {
        "normalizer": (None, {"type": "NFC"}, {"type": "NFKC"}, {"type": "Lowercase"},
                       {"type": "Prepend", "prepend": "x"}, {"type": "Strip", "strip_left": True, "strip_right": True},
                       {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}),
        "post_processor": (None, _TEMPLATE, {"type": "ByteLevel", **_BYTES}),
        "truncation": (None, _TRUNCATION, {**_TRUNCATION, "direction": "Right"}),
        "padding": (None, _PADDING, {**_PADDING, "strategy": {"Fixed": 20}}),
        "pre_tokenizer": (None, {"type": "ByteLevel", **_BYTES, "use_regex": True}, {"type": "WhitespaceSplit"}),
        "decoder": (None,),
        "added_tokens": ([], [{"id": 0, "content": "cat", **_ADDED, "lstrip": True, "rstrip": True}]),
    },
    "generation_config.json": {"eos_token_id": (0, [0, 1], GONE), "temperature": (0.0, 2.0), "max_length": (4,)},
    "added_tokens.json": {"the": (300, 3)},
}  # fmt: skip


def change_settings(rng: Random, model: Path) -> str:
    """Change one to three settings in one or two files of a checkpoint; return which."""
    said = []
    for name in rng.sample(sorted(PLAUSIBLE), rng.choice((1, 1, 1, 2))):
        path = model / name
        value = json.loads(path.read_bytes()) if path.exists() else {}
        known = PLAUSIBLE[name]
        for key in rng.sample(sorted(known), min(len(known), rng.choice((1, 1, 2, 3)))):
            new = rng.choice(known[key])
            said.append(f"{name}: {key} = {'gone' if new is GONE else json.dumps(new)}")
            if not key:
                value = new
            elif new is GONE:
                value.pop(key, None)
            else:
                value[key] = new
        path.unlink(missing_ok=True)  # a link to the seed's own file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    return "; ".join(said)
