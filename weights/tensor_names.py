"""The names and shapes of a Qwen3 checkpoint's tensors: 11·L + 2 weights, and four biases per layer if configured."""

import math
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from lastword.errors import WeightsError, list_some
from lastword.weights.config import ModelConfig

EMBEDDING = "embed_tokens.weight"
NORM = "norm.weight"
LM_HEAD = "lm_head.weight"  # the only additional tensor that an embedding model may hold
SCORE = "score.weight"  # the head of a model for sequence classification, [labels, C]
PREFIX = "model."

_UNWRAP = "Save the model itself, not the wrapper."
_MERGE = "Merge the adapter into the model (merge_and_unload) and save that."
# Maps the part that a wrapper adds to a tensor's name to the wrapper and the remedy. Such names are refused, because
# they show that the wrapper was saved by mistake. transformers does not recognise them and would use random weights.
_WRAPPERS = {
    "_orig_mod": ("torch.compile", _UNWRAP),
    "module": ("DataParallel or DistributedDataParallel", _UNWRAP),
    "_fsdp_wrapped_module": ("FSDP", _UNWRAP),
    "_checkpoint_wrapped_module": ("activation checkpointing", _UNWRAP),
    "auto_model": ("sentence-transformers", "Save it with SentenceTransformer.save_pretrained."),
    "base_model": ("PEFT", _MERGE),
    "base_layer": ("PEFT", _MERGE),
    "modules_to_save": ("PEFT", _MERGE),
    "lora_A": ("PEFT", _MERGE),
    "lora_B": ("PEFT", _MERGE),
    "parametrizations": ("torch.nn.utils.parametrize", "Remove the parametrisation before saving."),
}  # fmt: skip
_WRAPPER = re.compile(rf"(?:^|\.)({'|'.join(_WRAPPERS)})\.")
_PREFIXED = re.compile(r"^((?:[^.]+\.)*?)(?:embed_tokens|layers\.\d+|norm)\.")

Shapes = dict[str, tuple[int, ...]]


def layer_shapes(config: ModelConfig) -> Shapes:
    """Return the shapes of one layer's tensors, by name without `layers.<index>.`."""
    hidden, width, dim = config.hidden_size, config.intermediate_size, config.head_dim
    rows = {
        "q_proj": config.num_attention_heads * dim,
        "k_proj": config.num_key_value_heads * dim,
        "v_proj": config.num_key_value_heads * dim,
    }
    shapes: Shapes = {"input_layernorm.weight": (hidden,)}
    shapes |= {f"self_attn.{name}.weight": (size, hidden) for name, size in rows.items()}
    shapes |= {
        "self_attn.q_norm.weight": (dim,),
        "self_attn.k_norm.weight": (dim,),
        "self_attn.o_proj.weight": (hidden, rows["q_proj"]),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (width, hidden),
        "mlp.up_proj.weight": (width, hidden),
        "mlp.down_proj.weight": (hidden, width),
    }
    if config.attention_bias:
        shapes |= {f"self_attn.{name}.bias": (size,) for name, size in rows.items()}
        shapes["self_attn.o_proj.bias"] = (hidden,)
    return shapes


def expected_shapes(config: ModelConfig) -> Shapes:
    """Return the shapes of all tensors that the model must have, by name without `model.`."""
    shapes: Shapes = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    one = layer_shapes(config)
    for index in range(config.num_hidden_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in one.items()}
    shapes[NORM] = (config.hidden_size,)
    return shapes


def loaded_bytes(
    config: ModelConfig, itemsize: int, *, table: bool, quantized: Collection[int] = ()
) -> int:
    """Return how many bytes the loaded weights take in memory.

    Args:
        config: the model's configuration.
        itemsize: bytes per number that is not quantised.
        table: whether the token embeddings are in memory too.
        quantized: indices of the layers whose matrices take one byte per number, and have an fp32 scale per row.
    """
    shapes = layer_shapes(config).values()
    plain = itemsize * sum(map(math.prod, shapes))
    matrices = [shape for shape in shapes if len(shape) == 2]
    saved = sum((itemsize - 1) * math.prod(shape) - 4 * shape[0] for shape in matrices)
    rows = 1 + (config.vocab_size if table else 0)  # the final norm, the embeddings
    layers = config.num_hidden_layers * plain - len(quantized) * saved
    return layers + rows * config.hidden_size * itemsize


def find_prefix(folder: Path, names: Collection[str]) -> str:
    """Return the most common prefix of the model's tensor names: `model.` or the empty string.

    Raises:
        WeightsError: a wrapper was saved instead of the model, or the most common prefix is a different one.
    """

    def wrong_names(text: str, number: int, how: str, remedy: str) -> WeightsError:
        many = "all" if number == len(names) else f"{number} of {len(names)}"
        got = min((name for name in names if text in name), key=lambda name: (len(name), name))
        expected = f"names like {PREFIX}{EMBEDDING} or {EMBEDDING}"
        what = f"{many} tensor names {how}"
        return WeightsError(str(folder), what, got=got, expected=expected, remedy=remedy)

    wrapper, number = _most_common(_WRAPPER, names)
    if number:
        maker, remedy = _WRAPPERS[wrapper]
        raise wrong_names(wrapper, number, f"contain {wrapper}, which {maker} adds", remedy)
    prefix, number = _most_common(_PREFIXED, names)
    if prefix not in ("", PREFIX):
        raise wrong_names(prefix, number, f"begin with {prefix}", _UNWRAP)
    return prefix


def _most_common(pattern: re.Pattern[str], names: Collection[str]) -> tuple[str, int]:
    """Return the text that the pattern's first group matches most often, and the number of names with this text."""
    counts = Counter(found[1] for name in names if (found := pattern.search(name)))
    return max(counts.items(), key=lambda item: (item[1], item[0]), default=("", 0))


def refuse_mixed_prefixes(folder: Path, names: Collection[str], prefix: str) -> None:
    """Refuse a checkpoint in which some of the model's tensors have a prefix other than `prefix`."""
    mixed = [n for n in names if (found := _PREFIXED.search(n)) and found[1] != prefix]
    if mixed:
        what = f"{len(mixed)} of {len(names)} tensor names begin differently: {list_some(mixed)}"
        raise WeightsError(str(folder), what, expected=f"only names like {prefix}{EMBEDDING}")
