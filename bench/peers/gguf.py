"""Write a checkpoint as a GGUF file for llama.cpp, in fp32 and without a tokenizer; for `lastword bench peers`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lastword.errors import ConfigError
from lastword.weights import Checkpoint, ModelConfig, read_config
from lastword.weights.files.file_tensor import map_tensor
from lastword.weights.files.shards import read_tensors
from lastword.weights.tensor_names import EMBEDDING, LM_HEAD, PREFIX


def refusal(config: ModelConfig) -> str | None:
    """Return the setting of a configuration that cannot be written to GGUF; None if there is none."""
    if config.rope.kind != "default":
        return f"rope_type {config.rope.kind}"
    return "attention_bias" if config.attention_bias else None


def write_gguf(folder: Path, path: Path, tokens: Sequence[int]) -> None:
    """Write a checkpoint's weights in fp32, one tensor in memory at a time.

    Args:
        folder: the checkpoint.
        path: the GGUF file.
        tokens: token ids to keep; a token's id in the file is its place in this list.

    Raises:
        ConfigError: the model has rope scaling or biases.
    """
    config = read_config(folder)
    refused = refusal(config)
    if refused is not None:
        raise ConfigError(
            f"{folder}/config.json",
            "cannot be written to GGUF",
            got=refused,
            expected="none",
            remedy="Compare without llama.cpp.",
        )
    import gguf
    import numpy as np

    found = read_tensors(folder)
    Checkpoint(folder, config, stored=found)  # checks names, shapes and dtypes against the config
    tensors = {name.removeprefix(PREFIX): info for name, info in found.items() if name != LM_HEAD}

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")  # llama.cpp's name for a file without one
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_pooling_type(gguf.PoolingType.LAST)

    # llama.cpp's own table maps the names; the rows of queries and keys keep their order.
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, info in tensors.items():
        rows = len(tokens) if name == EMBEDDING else info.shape[0]
        shape = (rows, *info.shape[1:])
        theirs = names.get_name(PREFIX + name, try_suffixes=(".weight",))
        writer.add_tensor_info(theirs, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, info in tensors.items():
        tensor = map_tensor(info, name)
        kept = tensor[list(tokens)] if name == EMBEDDING else tensor
        writer.write_tensor_data(kept.to(torch.float32).numpy())
    writer.close()
