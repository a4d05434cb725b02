"""Write a checkpoint as a GGUF file for llama.cpp, without a tokenizer; for `lastword bench peers`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lastword.errors import ConfigError
from lastword.weights import Checkpoint, ModelConfig, read_config
from lastword.weights.files.file_tensor import map_tensor
from lastword.weights.files.header import TensorInfo
from lastword.weights.files.shards import read_tensors
from lastword.weights.tensor_names import EMBEDDING, LM_HEAD, PREFIX

# GGUF's names of the tensor type and of the file type, by precision.
TYPES = {
    "fp32": ("F32", "ALL_F32"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "8bit": ("Q8_0", "MOSTLY_Q8_0"),
}
_BLOCK = 32  # numbers that share a scale in Q8_0


def refusal(config: ModelConfig, precision: str = "fp32") -> str | None:
    """Return, in words, the setting or size that prevents writing a model to GGUF; None if nothing does."""
    if config.rope.kind != "default":
        return f"rope_type {config.rope.kind}"
    if config.attention_bias:
        return "attention_bias"
    heads = config.num_attention_heads * config.head_dim
    for size in (config.hidden_size, config.intermediate_size, heads):
        if precision == "8bit" and size % _BLOCK:
            return f"rows of {size} numbers, not a multiple of {_BLOCK}"
    return None


def write_gguf(folder: Path, path: Path, tokens: Sequence[int], precision: str = "fp32") -> None:
    """Write a checkpoint's weights, with one tensor in memory at a time.

    Args:
        folder: the checkpoint.
        path: the GGUF file.
        tokens: ids of the tokens to keep; the id of a token in the file is its index in this list.
        precision: a name in `TYPES`; vectors, such as norm weights, are always written in fp32.

    Raises:
        ConfigError: the model has rope scaling or biases, or rows that Q8_0 cannot hold.
    """
    config = read_config(folder)
    refused = refusal(config, precision)
    if refused is not None:
        raise ConfigError(
            f"{folder}/config.json",
            "cannot be written to GGUF",
            got=refused,
            expected="none",
            remedy="Compare without llama.cpp.",
        )
    found = read_tensors(folder)
    Checkpoint(folder, config, stored=found)  # checks names, shapes and dtypes against the config
    tensors = {name.removeprefix(PREFIX): info for name, info in found.items() if name != LM_HEAD}
    writer = _writer(path, config, len(tokens), precision)
    _write_tensors(writer, config, tensors, tokens, precision)
    writer.close()


def _writer(path: Path, config: ModelConfig, vocabulary: int, precision: str) -> Any:
    """Open a GGUF file and set the model's settings in it."""
    import gguf

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    writer.add_file_type(gguf.LlamaFileType[TYPES[precision][1]])
    writer.add_tokenizer_model("none")  # llama.cpp's name for a file without one
    writer.add_vocab_size(vocabulary)
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
    return writer


def _write_tensors(
    writer: Any,
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    tokens: Sequence[int],
    precision: str,
) -> None:
    """Write the tensors under llama.cpp's names; the rows of queries and keys keep their order."""
    import gguf
    import numpy as np

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    matrices = gguf.GGMLQuantizationType[TYPES[precision][0]]
    vectors = gguf.GGMLQuantizationType.F32

    for name, info in tensors.items():
        rows = len(tokens) if name == EMBEDDING else info.shape[0]
        shape = (rows, *info.shape[1:])
        kind = matrices if len(shape) > 1 else vectors
        theirs = names.get_name(PREFIX + name, try_suffixes=(".weight",))
        if kind == vectors:
            writer.add_tensor_info(theirs, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
        else:
            held = gguf.quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(theirs, held, np.dtype(np.uint8), int(np.prod(held)), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, info in tensors.items():
        tensor = map_tensor(info, name)
        kept = tensor[list(tokens)] if name == EMBEDDING else tensor
        kind = matrices if kept.ndim > 1 else vectors
        writer.write_tensor_data(gguf.quants.quantize(kept.to(torch.float32).numpy(), kind))
