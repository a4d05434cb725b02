"""The exact names and shapes of a Qwen3 checkpoint: 11·L + 2 tensors, and four biases per layer if configured."""

from lastword.weights.config import ModelConfig

EMBEDDING = "embed_tokens.weight"
NORM = "norm.weight"
LM_HEAD = "lm_head.weight"  # the only additional tensor that a checkpoint may hold
PREFIX = "model."

Shapes = dict[str, tuple[int, ...]]


def layer_shapes(config: ModelConfig) -> Shapes:
    """Return the shapes of one layer's tensors by their names after `layers.<index>.`."""
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
    """Return the shapes of all tensors of the model by their names without `model.`."""
    shapes: Shapes = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    one = layer_shapes(config)
    for index in range(config.num_hidden_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in one.items()}
    shapes[NORM] = (config.hidden_size,)
    return shapes
